"""Tasks in worker processes: order, and how they end. Run: .venv/bin/python -m pytest tests/test_workers.py"""

import os
import time
from pathlib import Path

import pytest

from framefold.data.workers import map_in_processes
from framefold.errors import UserError


class Stopped(Exception):
    pass


def slow_first(number: int) -> tuple[int, int]:
    time.sleep(0.3 if number == 0 else 0.0)
    return number, os.getpid()


def die(note: Path) -> None:
    note.touch()
    os._exit(1)


def note_slowly(note: Path) -> None:
    time.sleep(0.5)
    note.touch()


def test_results_come_in_order_from_other_processes() -> None:
    found = list(map_in_processes(slow_first, range(20), 2, lambda: None))
    assert [number for number, _ in found] == list(range(20))
    assert os.getpid() not in {pid for _, pid in found}


def test_a_worker_that_died_is_one_line(tmp_path: Path) -> None:
    """Killed for lack of memory, most of the time: no hanging, no traceback."""
    with pytest.raises(UserError, match=r"a worker process died.*FRAMEFOLD_WORKERS=1"):
        list(map_in_processes(die, [tmp_path / "1"], 1, lambda: None))


def test_a_signal_goes_before_the_worker_that_it_ended_too(tmp_path: Path) -> None:
    """Sent to the whole group: the stage says that it was stopped, not that a worker died."""

    def guard() -> None:
        if (tmp_path / "1").exists():
            raise Stopped

    with pytest.raises(Stopped):
        list(map_in_processes(die, [tmp_path / "1"], 1, guard))


def test_the_guard_stops_the_work_that_has_not_begun(tmp_path: Path) -> None:
    """Of five in flight one may be done, one at work, two wait in the worker's own queue; the fifth never begins."""
    started = time.monotonic()

    def guard() -> None:
        if time.monotonic() - started > 0.2:
            raise Stopped

    with pytest.raises(Stopped):
        list(map_in_processes(note_slowly, [tmp_path / str(number) for number in range(9)], 1, guard))
    assert len(list(tmp_path.iterdir())) <= 4
