"""Paths in params: absolute for a run, which has a folder of its own; by name alone in what must not depend on it."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

KEYS = ("data.root", "data.categories", "text.vocab", "student.text.folder", "teacher.text.folder")


def absolute(params: dict[str, Any], root: Path) -> dict[str, Any]:
    """What lies under `root` by its full path; generated data stay where each run generates them."""
    generated = params["data"]["root"] if params["data"]["generated"] else None

    def resolve(value: str) -> str:
        return value if value == generated else str((root / value).resolve())

    return _mapped(params, resolve)


def named(params: dict[str, Any]) -> dict[str, Any]:
    """Without the folders that files stand in, nor the name of data.root: the same on every machine."""
    own = _mapped(params, lambda value: Path(value).name)
    own["data"]["root"] = None
    return own


def _mapped(params: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    copied = copy.deepcopy(params)
    for block, key in _places(copied):
        if block[key] is not None:
            block[key] = change(block[key])
    return copied


def _places(params: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    for *parents, key in (key.split(".") for key in KEYS):
        block = params
        for parent in parents:
            block = block[parent]
        yield block, key
    for encoder in params["encoders"].values():
        yield encoder, "weights"
