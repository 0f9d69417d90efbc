"""Profiles: files of overrides that are merged into params.yaml, whose comments stay.

A profile states only what it changes. Mappings merge; lists and plain values are replaced, and so are the keys in
REPLACED: their sub-keys name things (an encoder, a data set) that must not be left over from another profile.
"""

import difflib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.comments import CommentedMap

from framefold.errors import UserError
from framefold.params.base import PARAMS_FILE
from framefold.params.validation import validate_all
from framefold.storage import write_aside

REPLACED = frozenset({"data", "encoders", "archs", "folds", "earlier_rounds"})
FREE = frozenset({"kwargs", "config"})  # mappings passed on to open_clip or timm: any key may be new there


def apply_profile(name: str, overrides: Sequence[str], root: Path | str = ".") -> None:
    """Merge `profiles/<name>.yaml`, then `key=value` overrides, into params.yaml under `root`.

    The result is validated as a whole before anything is written. Raises UserError, and params.yaml stays as it was.
    """
    text = _dump(merged(name, overrides, root))
    validate_all(yaml.safe_load(text))
    with write_aside(Path(root) / PARAMS_FILE) as aside:
        aside.write_text(text, encoding="utf-8")


def merged(name: str | None, overrides: Sequence[str], root: Path | str = ".") -> CommentedMap:
    """params.yaml under `root`, a profile (None: no profile) and `key=value` overrides merged in; not validated."""
    params = _read(Path(root) / PARAMS_FILE)
    if name is not None:
        merge(params, _read(_profile_path(Path(root) / "profiles", name)), f"profile {name}")
    for override in overrides:
        set_value(params, *parse_override(override))
    return params


def merge(params: dict[Any, Any], changes: dict[Any, Any], source: str, path: tuple[str, ...] = ()) -> None:
    """Change `params` in place; a key that `params` does not have is refused, except under REPLACED."""
    whole = bool(path) and path[0] in REPLACED
    for key in [key for key in params if whole and key not in changes]:
        del params[key]
    for key, value in changes.items():
        here = (*path, str(key))
        if key not in params and not whole:
            raise _unknown(source, here, [".".join((*path, str(known))) for known in params])
        if isinstance(value, dict) and isinstance(params.get(key), dict):
            merge(params[key], value, source, here)
        else:
            params[key] = value


def parse_override(text: str) -> tuple[list[str], Any]:
    """`finetune.lr.head=3e-4` -> (["finetune", "lr", "head"], 0.0003); the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{text}: expected key=value, e.g. finetune.epochs=5")
    try:
        return key.split("."), _yaml().load(value)
    except YAMLError as error:
        raise UserError(f"{text}: the value is not YAML ({' '.join(str(error).split())})") from None


def set_value(params: dict[Any, Any], keys: Sequence[str], value: Any) -> None:
    """Set one value in place; its key must be there already, except inside the mappings named in FREE."""
    block: Any = params
    for depth, key in enumerate(keys[:-1]):
        if key not in block:
            raise _unknown("override", keys, _paths(params))
        block = block[key]
        if not isinstance(block, dict):
            raise UserError(f"{'.'.join(keys)}: {'.'.join(keys[: depth + 1])} is {block!r}, which has no keys inside")
    if keys[-1] not in block and not FREE.intersection(keys[:-1]):
        raise _unknown("override", keys, _paths(params))
    block[keys[-1]] = value


def _unknown(source: str, path: Sequence[str], known: Iterable[str]) -> UserError:
    wanted = ".".join(path)
    nearest = difflib.get_close_matches(wanted, list(known), n=1, cutoff=0.0)
    return UserError(f"{source}: unknown key {wanted}; did you mean {nearest[0] if nearest else 'another group'}?")


def _paths(block: dict[Any, Any], prefix: tuple[str, ...] = ()) -> Iterable[str]:
    for key, value in block.items():
        yield ".".join([*prefix, str(key)])
        if isinstance(value, dict):
            yield from _paths(value, (*prefix, str(key)))


def _profile_path(folder: Path, name: str) -> Path:
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise UserError(
            f"profile {name}: not in {folder}/ ({', '.join(names) or 'no profiles there; run from the project root'})"
        )
    return folder / f"{name}.yaml"


def _yaml() -> YAML:
    yaml_round_trip = YAML()
    yaml_round_trip.width = 10_000  # long lists and paths stay on their line
    yaml_round_trip.preserve_quotes = True
    yaml_round_trip.representer.add_representer(type(None), _represent_null)
    return yaml_round_trip


def _represent_null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def _read(path: Path) -> CommentedMap:
    try:
        content = _yaml().load(path.read_text(encoding="utf-8"))
    except (OSError, YAMLError) as error:
        raise UserError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); run from the project's root"
        ) from None
    if not isinstance(content, CommentedMap):
        raise UserError(f"{path}: expected a mapping of parameter groups")
    return content


def _dump(params: CommentedMap) -> str:
    buffer = io.StringIO()
    _yaml().dump(params, buffer)
    return buffer.getvalue()
