"""The label map: category ids `LLSS` (two digits of level 1, two of level 2), sorted; a label is a position in it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from framefold.data.samples import FOLDER
from framefold.errors import UserError
from framefold.storage import read_json, write_json

FILE = FOLDER / "categories.json"


def is_category(text: str) -> bool:
    return len(text) == 4 and text.isascii() and text.isdigit()


@dataclass(frozen=True)
class Categories:
    """`names`: sorted LLSS ids. `level1`: sorted first halves."""

    names: list[str]

    @property
    def level1(self) -> list[str]:
        return sorted({name[:2] for name in self.names})

    def index(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.names)}

    def write(self, path: Path) -> None:
        write_json(path, {"categories": self.names, "level1": self.level1})


def make_categories(names: Iterable[str]) -> Categories:
    return Categories(sorted(set(names)))


def read_categories(path: Path = FILE) -> Categories:
    """What ingest wrote."""
    return Categories(read_json(path)["categories"])


def read_label_map(path: Path) -> Categories:
    """The file that `data.categories` names: one LLSS id a line; empty lines and what follows a `#` are ignored."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.categories: {path} cannot be read ({error}); one category id a line is expected"
        ) from None
    names = [name for line in lines if (name := line.split("#")[0].strip())]
    for name in names:
        if not is_category(name):
            raise UserError(f"data.categories: {path} holds {name!r}; a category id has 4 digits")
    if not names:
        raise UserError(f"data.categories: {path} is empty; one category id a line is expected")
    return make_categories(names)
