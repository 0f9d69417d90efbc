"""The same task over many items in worker processes, in order, so that neither number nor pace changes a result."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Self, TypeVar

from framefold.errors import UserError

IN_FLIGHT = 3  # tasks per worker: enough to keep it busy, few enough to bound memory
GUARD_SECONDS = 1.0
Item = TypeVar("Item")
Result = TypeVar("Result")
Guard = Callable[[], None]


class WorkerPool:
    """`workers` processes; 0: this one. `prepare(*arguments)` runs first in each.

    `guard` runs once a second (in this process: before each item); what it raises stops the work. Workers are spawned,
    since a fork of a process with running threads can deadlock, and end when this process is gone, however it ended.
    """

    def __init__(
        self,
        workers: int,
        guard: Guard,
        prepare: Callable[..., None] | None = None,
        arguments: tuple[Any, ...] = (),
    ):
        self.workers, self.guard, self.pool = workers, guard, None
        if workers:
            context = multiprocessing.get_context("spawn")
            start = (prepare, arguments)
            self.pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=start)
        elif prepare is not None:
            prepare(*arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `task(item)` per item, in order; `items` is read ahead. UserError: a worker died."""
        if self.pool is None:
            for item in items:
                self.guard()
                yield task(item)
            return
        in_flight: deque[Future[Result]] = deque()
        try:
            for item in items:
                in_flight.append(self.pool.submit(task, item))
                if len(in_flight) > IN_FLIGHT * self.workers:
                    yield self._result(in_flight.popleft())
            while in_flight:
                yield self._result(in_flight.popleft())
        except BrokenProcessPool:
            self.guard()  # a signal to the whole group ends the workers as well
            raise UserError(
                "a worker process died, mostly for lack of memory; run again, with fewer (FRAMEFOLD_WORKERS=1)"
            ) from None

    def _result(self, future: Future[Result]) -> Result:
        self.guard()
        while not wait([future], GUARD_SECONDS).done:
            self.guard()
        return future.result()


def start_worker(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if prepare is not None:
        prepare(*arguments)


def end_with_parent() -> None:
    """In a worker: a killed parent cannot stop its workers, so each watches for its end. Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` consecutive items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
