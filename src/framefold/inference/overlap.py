"""Items that are made ahead in a thread, while those before are used; or in turn, where there is no room for both."""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")
Make = Callable[[Callable[[], None]], Generator[T, None, None]]
LOOK_SECONDS = 0.1  # between looks at whether the other side still wants anything


class Stopped(Exception):
    """Raised in the thread when nobody wants its items any more."""


class InTurn(Generic[T]):
    """Context manager around the items of `make(guard)`, each made when it is asked for."""

    def __init__(self, make: Make[T]):
        self.busy, self.waited = 0.0, 0.0  # seconds at work on items; seconds that their user waited for them
        self._items = make(lambda: None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._items.close()

    def __iter__(self) -> Iterator[T]:
        while (item := self._next()) is not None:
            yield item[0]

    def _next(self) -> tuple[T] | None:
        start = time.monotonic()
        try:
            return (next(self._items),)
        except StopIteration:
            return None
        finally:
            self.busy += time.monotonic() - start
            self.waited = self.busy


class Ahead(Generic[T]):
    """Context manager around the items of `make(guard)`, made in a thread; at most `limit` of them wait.

    `guard` is for the maker to call now and then: it raises `Stopped` once the context has been left, whatever for.
    What the maker raises itself is raised where its items are used. Leaving the context waits for the thread to end.
    """

    def __init__(self, make: Make[T], limit: int):
        self.make = make
        self.busy, self.waited = 0.0, 0.0  # seconds at work in the thread; seconds that its user waited for items
        self._queue: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(limit)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ahead")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            start = time.monotonic()
            item = self._queue.get()
            self.waited += time.monotonic() - start
            if isinstance(item, BaseException):
                raise item
            if item is None:
                return
            yield item[0]

    def _guard(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def _work(self) -> None:
        items = self.make(self._guard)
        try:
            while (item := self._next(items)) is not None:
                self._put(item)
            self._put(None)
        except Stopped:
            pass
        except BaseException as error:  # whatever it is, it must end the other side, too
            self._put_last(error)
        finally:
            items.close()  # its contexts end in the thread that they were entered in

    def _next(self, items: Iterator[T]) -> tuple[T] | None:
        start = time.monotonic()
        try:
            return (next(items),)
        except StopIteration:
            return None
        finally:
            self.busy += time.monotonic() - start

    def _put(self, item: tuple[T] | BaseException | None) -> None:
        while True:
            self._guard()
            try:
                return self._queue.put(item, timeout=LOOK_SECONDS)
            except queue.Full:
                continue

    def _put_last(self, error: BaseException) -> None:
        with contextlib.suppress(Stopped):
            self._put(error)


def has_room_ahead() -> bool:
    """Whether two threads that compute on the CPU have cores of their own; on shared ones each slows the other down."""
    import torch

    return 2 * torch.get_num_threads() <= len(os.sched_getaffinity(0))
