"""Reading params.yaml: every group is a typed, frozen model; unknown keys are refused, `3e-05` as a string is a number.

There are no defaults in code: params.yaml states every value, so that nothing is decided in two places.
"""

from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from framefold.errors import UserError

PARAMS_FILE = Path("params.yaml")
TOP_LEVEL_KEYS = frozenset(
    {
        "seed",
        "precision",
        "data",
        "splits",
        "archs",
        "folds",
        "full_data",
        "earlier_rounds",
        "demo",
        "ingest",
        "split",
        "encoders",
        "text",
        "student",
        "teacher",
        "models",
        "pseudo_label",
        "pretrain",
        "finetune",
        "average_weights",
        "reweight",
        "reference",
        "ensemble",
    }
)


class Group(BaseModel):
    """A block of params.yaml; `key` is where it stands (dots for nesting)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    key: ClassVar[str] = ""


G = TypeVar("G", bound=Group)


def read(path: Path | str = PARAMS_FILE) -> dict[str, Any]:
    """The whole of params.yaml as plain values, its top-level keys checked."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); run from the project's root"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping of parameter groups")
    unknown, missing = sorted(content.keys() - TOP_LEVEL_KEYS), sorted(TOP_LEVEL_KEYS - content.keys())
    if unknown or missing:
        raise UserError(
            f"{path}: unknown keys {unknown}, missing keys {missing}; compare with the committed params.yaml"
        )
    return content


def load(group: type[G], key: str | None = None, path: Path | str = PARAMS_FILE) -> G:
    """Validate one group, e.g. `load(FinetuneParams)` or `load(EncoderParams, "encoders.clip")`."""
    key = key or group.key
    return validate(group, value_at(read(path), key, path), key, path)


def load_value(key: str, path: Path | str = PARAMS_FILE) -> Any:
    """One plain value, e.g. `load_value("seed")`."""
    return value_at(read(path), key, path)


def value_at(content: Any, key: str, path: Path | str) -> Any:
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            raise UserError(f"{path}: {key} is missing")
        content = content[part]
    return content


def validate(group: type[G], value: Any, key: str, path: Path | str) -> G:
    try:
        return group.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([key, *map(str, first["loc"])])
        given = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"  # a group says too much
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UserError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}{given}{more}") from None
