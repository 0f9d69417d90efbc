"""Ending a stage where it hurts: at a chosen call of a chosen function, in this process."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest


class Killed(BaseException):
    """What no `except Exception` stops, as a SIGKILL; `finally` still runs."""


def kill() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def before_call(patch: pytest.MonkeyPatch, target: str, number: int, action: Callable[[], None]) -> None:
    """Run `action` before call `number` (from 1) of the function that `target` names; the later ones are as ever."""
    original = resolve_name(target)
    calls = 0

    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            action()
        return original(*arguments, **named)

    patch.setattr(target, call)


def contents(patterns: list[str]) -> dict[str, bytes]:
    """Bytes of all files that the patterns match, below the current folder; hidden leftovers are an error."""
    files = [path for pattern in patterns for path in sorted(Path().glob(pattern)) if path.is_file()]
    half_written = [path for folder in ("data", "models", "metrics") for path in Path(folder).glob(".*")]
    assert not half_written
    return {path.as_posix(): path.read_bytes() for path in files}


def scratch_only_locks() -> bool:
    return [path.name for path in Path(".scratch").iterdir()] == [".locks"]


def undisturbed(main: Callable[[], None], outputs: list[str]) -> dict[str, bytes]:
    """What a run to the end writes; nothing of it is left."""
    main()
    written = contents(outputs)
    assert scratch_only_locks()
    for name in written:
        Path(name).unlink()
    return written


def killed_before(main: Callable[[], None], target: str, number: int) -> None:
    """Run until call `number` of the function that `target` names."""
    with pytest.MonkeyPatch.context() as patch:
        before_call(patch, target, number, kill)
        with pytest.raises(Killed):
            main()
