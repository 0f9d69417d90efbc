"""Frames as pixels where features stand otherwise: for students that train a vision tower of their own.

The rows, texts and order of videos are those of the stores; only "frames" of a batch is (B, F, S, S, 3) uint8, read
from the zips and decoded whenever a batch is made.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import get_worker_info

from framefold.data.batches import VideoDataset, sample_rng
from framefold.data.frames import FrameError, decode_jpeg, read_frames
from framefold.data.images import Preprocess
from framefold.data.manifest import SplitManifest, read_layout
from framefold.data.videos import Videos
from framefold.errors import UserError
from framefold.runtime import load_runtime

CROP = 1 << 62  # added to a video's key: crops are drawn apart from the choice of frames
Pixels = npt.NDArray[np.uint8]  # [n, S, S, 3]


class FramePixels:
    """The frames of a split's videos, by id. In training a video's frames share one random crop and mirroring.

    max_frames: decoded of a video at most, as when its features were extracted; min_crop: see `random_crop`. UserError:
    the data root brings features instead of frames.
    """

    def __init__(self, root: Path | str, split: str, preprocess: Preprocess, max_frames: int, min_crop: float):
        if read_layout(root) == "zip_feats":
            raise UserError(f"{root}: brings features, a vision tower needs frames; set finetune.vision.lr to 0")
        self.root, self.manifest = Path(root), SplitManifest(root, split)
        self.preprocess, self.max_frames, self.min_crop = preprocess, max_frames, min_crop

    def of(self, video_id: str, indices: npt.NDArray[np.int64] | None, draw: tuple[int, int, int] | None) -> Pixels:
        """Those at `indices` of a video's usable frames, None: all; draw: (seed, epoch, key) in training."""
        entry = self.manifest.find(video_id)
        files = [data for _, data in read_frames(self.root, entry, self.max_frames).frames] if entry else []
        usable = [pixels for data in files if (pixels := self._decoded(data, draw)) is not None]
        chosen = usable if indices is None else [usable[index] for index in indices.tolist() if index < len(usable)]
        size = self.preprocess.image_size
        return np.stack(chosen) if chosen else np.empty((0, size, size, 3), np.uint8)

    def _decoded(self, data: bytes, draw: tuple[int, int, int] | None) -> Pixels | None:
        """None: not a whole image, which has no features either."""
        try:
            if draw is None:
                return self.preprocess.pixels(data)
            seed, epoch, key = draw
            image, rng = decode_jpeg(data, self.preprocess.image_size), sample_rng(seed, epoch, key + CROP)
            return self.preprocess.random_crop(image, rng, self.min_crop)
        except FrameError:
            return None


class PixelDataset(VideoDataset):
    """A VideoDataset whose features only say how many frames a video has."""

    def __init__(self, pixels: FramePixels, *stores: Any):
        super().__init__(*stores)
        self.pixels = pixels

    def _frames(  # type: ignore[override]
        self, rows: npt.NDArray[np.int64], keys: npt.NDArray[np.int64], draw: tuple[int, int] | None, most: int
    ) -> tuple[Pixels, npt.NDArray[np.bool_]]:
        size, places = self.pixels.preprocess.image_size, list(zip(rows.tolist(), keys.tolist(), strict=True))
        frames, mask = np.zeros((len(rows), most, size, size, 3), np.uint8), np.zeros((len(rows), most), bool)

        def read(place: tuple[int, int], video_id: str) -> Pixels:
            row, key = place
            return self.pixels.of(video_id, self._chosen(row, key, draw), (*draw, key) if draw else None)

        for number, video in enumerate(in_threads(read, places, self.tokens.ids_at(rows.tolist()))):
            frames[number, : len(video)], mask[number, : len(video)] = video[:most], True
        return frames, mask


def in_threads(read: Any, *arguments: Sequence[Any]) -> Iterable[Any]:
    """Results in order, by as many threads as there would be workers; in a worker by its own."""
    workers = load_runtime().workers if get_worker_info() is None else 0
    if workers < 2:
        return map(read, *arguments)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(read, *arguments))


@dataclass(frozen=True)
class PixelVideos(Videos):
    """Videos whose batches hold pixels."""

    pixels: FramePixels

    @property
    def _dataset_of(self) -> Callable[..., VideoDataset]:
        return partial(PixelDataset, self.pixels)


def with_pixels(videos: Videos, root: Path | str, split: str, preprocess: Preprocess, min_crop: float) -> PixelVideos:
    """The same videos with frames from `root`, as many of each as the feature store was made from."""
    max_frames = videos.features.manifest["sampling"]["max_frames"]
    pixels = FramePixels(root, split, preprocess, max_frames, min_crop)
    return PixelVideos(videos.tokens, videos.features, videos.special, pixels)
