"""The same task over many items in worker processes, in order, so that neither number nor pace changes a result."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from framefold.data.decoding import end_with_parent
from framefold.errors import UserError

IN_FLIGHT = 4  # tasks per worker: enough to keep it busy, few enough to bound memory
GUARD_SECONDS = 1.0
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    guard: Callable[[], None],
    prepare: Callable[..., None] | None = None,
    arguments: tuple[Any, ...] = (),
) -> Generator[Result, None, None]:
    """Yield `task(item)` per item, in order. `prepare(*arguments)` runs first in each worker.

    `guard` runs once a second; what it raises stops the work. Workers end when this process is gone, however it ended.
    UserError: one of them died.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(prepare, arguments))
    in_flight: deque[Future[Result]] = deque()
    try:
        for item in items:
            in_flight.append(pool.submit(task, item))
            if len(in_flight) > IN_FLIGHT * workers:
                yield result_of(in_flight.popleft(), guard)
        while in_flight:
            yield result_of(in_flight.popleft(), guard)
    except BrokenProcessPool:
        guard()  # a signal to the whole group ends the workers as well
        raise UserError(
            "a worker process died, mostly for lack of memory; run again, with fewer (FRAMEFOLD_WORKERS=1)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if prepare is not None:
        prepare(*arguments)


def result_of(future: Future[Result], guard: Callable[[], None]) -> Result:
    guard()
    while not wait([future], GUARD_SECONDS).done:
        guard()
    return future.result()
