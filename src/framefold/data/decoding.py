"""Reading and decoding the frames of many videos, in order, in worker processes."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from framefold.data.frames import FrameError, as_jpeg, read_frames
from framefold.data.images import Preprocess
from framefold.data.manifest import ManifestEntry
from framefold.data.workers import WorkerPool, batched

if TYPE_CHECKING:
    import torch  # workers do without

VIDEOS_PER_TASK = 8  # sent to a worker at once

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


def decode(
    pool: WorkerPool, read: Callable[[ManifestEntry | None], T], entries: Iterable[ManifestEntry | None]
) -> Iterator[T]:
    """Yield what `read`, a Decoder or a FileReader, makes of each entry, in order."""
    tasks = batched(entries, VIDEOS_PER_TASK if pool.workers else 1)
    return itertools.chain.from_iterable(pool.map(partial(all_of, read), tasks))
