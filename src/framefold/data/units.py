"""Finished parts of a stage's work in its scratch folder: folders that appear whole, with a digest of every file.

>>> if not has_unit(folder / "labeled"):
...     with write_unit(folder / "labeled") as aside:
...         ...                                        # write files into `aside`
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from framefold.storage import write_folder_aside, write_json

log = logging.getLogger(__name__)

SEAL = "seal.json"  # digest of each file; of the unit's files the last one written


@contextlib.contextmanager
def write_unit(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `folder`, sealed, only when the block ends without an error."""
    with write_folder_aside(folder) as aside:
        yield aside
        write_json(aside / SEAL, digests_of(aside))


def has_unit(folder: Path) -> bool:
    """Whether the unit is there, with the bytes that were written. A damaged one is dropped with a warning."""
    if not folder.is_dir():
        return False
    try:
        intact = json.loads((folder / SEAL).read_text(encoding="utf-8")) == digests_of(folder)
    except (OSError, ValueError):
        intact = False
    if not intact:
        log.warning("%s: damaged progress dropped", folder)
        shutil.rmtree(folder)
    return intact


def digests_of(folder: Path) -> dict[str, str]:
    """blake2b of every file but the seal."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.name != SEAL:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, _blake2b).hexdigest()
    return digests


def _blake2b() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)


def drop_leftovers(parent: Path, name: str = "*") -> None:
    """Delete what a killed run left half-written beside `parent/name`; only for the holder of the stage's lock."""
    for path in parent.glob(f".{name}.*.aside"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def link_files(unit: Path, target: Path, pattern: str) -> None:
    """Put a unit's files into the folder `target` and keep them, at no cost in space where there are hard links."""
    for path in sorted(unit.glob(pattern)):
        if path.name == SEAL:
            continue
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)
