"""Reading and decoding the frames of many videos, in order, in worker processes."""

import itertools
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from framefold.data.frames import FrameError, as_jpeg, read_frames
from framefold.data.images import Preprocess
from framefold.data.manifest import ManifestEntry

if TYPE_CHECKING:
    import torch  # workers do without

VIDEOS_PER_TASK = 8  # sent to a worker at once
TASKS_PER_WORKER = 3  # in flight: enough to keep workers busy, few enough to bound memory

ADDRESS = re.compile(r" <[^>]* at 0x[0-9a-f]+>")  # Pillow names the object it read from; bytes must not depend on it

Pixels = npt.NDArray[np.uint8]  # [n, image_size, image_size, 3]
T = TypeVar("T")


class Decoded(NamedTuple):
    """The usable frames of one video, and those that were not."""

    pixels: "Pixels | torch.Tensor"  # uint8 [n, image_size, image_size, 3]; a tensor stands on the device
    problems: list[tuple[str, str]]  # (member, reason)


class Files(NamedTuple):
    """The image files of one video whose headers are sound, and the problems of the others."""

    images: list[tuple[str, bytes]]  # (member, JPEG file)
    problems: list[tuple[str, str]]  # (member, reason)


@dataclass(frozen=True)
class Decoder:
    """Reads and decodes the frames of one video; small, since it travels to workers with every task."""

    root: str
    preprocess: Preprocess
    max_frames: int

    def __call__(self, entry: ManifestEntry | None) -> Decoded:
        """None (the manifest has no such video) gives no frames. UserError: the zip no longer matches the manifest."""
        size = self.preprocess.image_size
        images: list[Pixels] = []
        problems: list[tuple[str, str]] = []
        video = read_frames(self.root, entry, self.max_frames) if entry is not None else None
        for member, data in video.frames if video else []:
            try:
                images.append(self.preprocess.pixels(data))
            except FrameError as error:
                problems.append((member, ADDRESS.sub("", str(error))))
        pixels = np.stack(images) if images else np.empty((0, size, size, 3), np.uint8)
        return Decoded(pixels, [*(video.problems if video else []), *problems])


@dataclass(frozen=True)
class FileReader:
    """Reads the JPEG frames of one video, for a decoder on the device."""

    root: str
    max_frames: int

    def __call__(self, entry: ManifestEntry | None) -> Files:
        """None (the manifest has no such video) gives no frames. UserError: the zip no longer matches the manifest."""
        if entry is None:
            return Files([], [])
        video = read_frames(self.root, entry, self.max_frames)
        images: list[tuple[str, bytes]] = []
        problems = list(video.problems)
        for member, data in video.frames:
            try:
                images.append((member, as_jpeg(data)))
            except FrameError as error:
                problems.append((member, ADDRESS.sub("", str(error))))
        return Files(images, problems)


def all_of(read: Callable[[ManifestEntry | None], T], entries: list[ManifestEntry | None]) -> list[T]:
    return [read(entry) for entry in entries]


class DecoderPool(Generic[T]):
    """Applies a Decoder or a FileReader to videos in `workers` processes; 0: in this one.

    Workers are spawned, since a fork of a process with running threads can deadlock, and end when this process is gone.
    """

    def __init__(self, decoder: Callable[[ManifestEntry | None], T], workers: int):
        self.decoder, self.workers = decoder, workers
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, context, initializer=end_with_parent) if workers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def decode(self, entries: Iterable[ManifestEntry | None]) -> Iterator[T]:
        """Yield what the decoder makes of each entry, in order."""
        if self.pool is None:
            yield from map(self.decoder, entries)
            return
        in_flight: deque[Future[list[T]]] = deque()
        for task in batched(entries, VIDEOS_PER_TASK):
            in_flight.append(self.pool.submit(all_of, self.decoder, task))
            if len(in_flight) >= TASKS_PER_WORKER * self.workers:
                yield from in_flight.popleft().result()
        while in_flight:
            yield from in_flight.popleft().result()


def end_with_parent() -> None:
    """In a worker: a killed parent cannot stop its workers, so each watches for its end. Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` consecutive items, the last one shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
