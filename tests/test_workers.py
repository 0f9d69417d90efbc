"""Tasks in worker processes: order, and how they end. Run: .venv/bin/python -m pytest tests/test_workers.py"""

import os
import time
from pathlib import Path

import pytest

from framefold.data.workers import WorkerPool
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
    with WorkerPool(2, lambda: None) as pool:
        found = list(pool.map(slow_first, range(20)))
    assert [number for number, _ in found] == list(range(20))
    assert os.getpid() not in {pid for _, pid in found}


def test_a_worker_that_died_is_one_line(tmp_path: Path) -> None:
    """Killed for lack of memory, most of the time: no hanging, no traceback."""
    with (
        pytest.raises(UserError, match=r"a worker process died.*FRAMEFOLD_WORKERS=1"),
        WorkerPool(1, lambda: None) as pool,
    ):
        list(pool.map(die, [tmp_path / "1"]))


def test_a_signal_goes_before_the_worker_that_it_ended_too(tmp_path: Path) -> None:
    """Sent to the whole group: the stage says that it was stopped, not that a worker died."""

    def guard() -> None:
        if (tmp_path / "1").exists():
            raise Stopped

    with pytest.raises(Stopped), WorkerPool(1, guard) as pool:
        list(pool.map(die, [tmp_path / "1"]))


def test_the_guard_stops_the_work_that_has_not_begun(tmp_path: Path) -> None:
    """Of five handed over one may be done, one at work, two wait in the worker's own queue; the fifth never begins."""
    started = time.monotonic()

    def guard() -> None:
        if time.monotonic() - started > 0.2:
            raise Stopped

    with pytest.raises(Stopped), WorkerPool(1, guard) as pool:
        list(pool.map(note_slowly, [tmp_path / str(number) for number in range(9)]))
    assert len(list(tmp_path.iterdir())) <= 4


here: list[int] = []


def test_without_workers_all_is_done_here_item_by_item() -> None:
    """`prepare` first, the guard before each item, and no item before it is wanted."""
    looks: list[int] = []
    with WorkerPool(0, lambda: looks.append(len(here)), here.append, (7,)) as pool:
        results = pool.map(slow_first, iter([3, 4, 5]))
        assert (next(results), next(results)) == ((3, os.getpid()), (4, os.getpid()))
    assert (here, looks) == ([7], [1, 1])


def test_a_pool_serves_more_than_once() -> None:
    with WorkerPool(1, lambda: None) as pool:
        assert [number for items in ([1, 2], [3]) for number, _ in pool.map(slow_first, items)] == [1, 2, 3]
