"""Frames of one split to features: decoded in worker processes, encoded in fixed batches, kept shard by shard.

Batches are filled with the frames of a shard in order and end with it, all of one size, so the features depend neither
on the number of workers, processes or machines nor on where an interrupted run went on.
"""

import contextlib
import hashlib
import itertools
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from framefold.data.decoding import Decoded, Decoder, FileReader, decode
from framefold.data.feature_archives import FeatureArchive
from framefold.data.frames import uniform_indices
from framefold.data.images import TORCHVISION, Preprocess, read_encoder_config
from framefold.data.manifest import SPLITS, ManifestEntry, SplitManifest, read_layout
from framefold.data.shards import KeptShards, Rejection, cut_shards
from framefold.data.workers import WorkerPool
from framefold.data.zip_directory import ZipError
from framefold.errors import UserError
from framefold.progress import Progress
from framefold.runtime import load_runtime
from framefold.storage import iterate_parquet

Features = npt.NDArray[np.float16]  # [n, dim]
Encode = Callable[[Iterable[Any]], Iterator[Features]]  # batches of pixels, arrays or tensors, one by one
Decode = Callable[[Iterable[ManifestEntry | None]], Iterator[Decoded]]
DIM_SAMPLE = 100  # given features that are asked for their size
WAIT_SECONDS = 0.5  # between looks for the shards of other processes

log = logging.getLogger(__name__)


class Shard(NamedTuple):
    """The features of consecutive videos, and the frames that could not be used."""

    n_frames: list[int]
    features: Features
    rejected: list[Rejection]


class Source(Protocol):
    """Where features come from: encoded frames, or features that the data set brings."""

    dim: int
    manifest: SplitManifest

    def shards(self, todo: Iterable[list[str]]) -> Iterator[Shard]:
        """One Shard per list of ids, in order; `todo` is read ahead."""
        ...


class EncodedFrames:
    """Layout zip_frames: decode and encode."""

    def __init__(self, manifest: SplitManifest, decode: Decode, encode: Encode, dim: int, batch_size: int):
        self.manifest, self.decode, self.encode, self.dim, self.batch_size = manifest, decode, encode, dim, batch_size

    def shards(self, todo: Iterable[list[str]]) -> Iterator[Shard]:
        """Frames of the next shard are decoded while the last batches of this one are encoded."""
        read: deque[list[str]] = deque()

        def entries() -> Iterator[ManifestEntry | None]:
            for ids in todo:
                read.append(ids)
                yield from map(self.manifest.find, ids)

        videos = self.decode(entries())
        for first in videos:
            ids = read.popleft()
            yield self._shard(ids, itertools.chain([first], itertools.islice(videos, len(ids) - 1)))

    def _shard(self, ids: list[str], videos: Iterable[Decoded]) -> Shard:
        shard = Shard([], np.empty((0, self.dim), np.float16), [])
        batches = self.encode(fill_batches(note(videos, ids, shard), self.batch_size))
        return shard._replace(features=np.concatenate([shard.features, *batches])[: sum(shard.n_frames)])


def note(videos: Iterable[Decoded], ids: list[str], shard: Shard) -> Iterator[Any]:
    """Pass the pixels on; record counts and problems."""
    for video_id, video in zip(ids, videos, strict=True):
        shard.n_frames.append(len(video.pixels))
        shard.rejected.extend((video_id, member, reason) for member, reason in video.problems)
        yield video.pixels


def fill_batches(videos: Iterable[Any], size: int) -> Iterator[Any]:
    """Batches of `size` frames (arrays or tensors) across videos. Holds a batch and a video.

    The last is filled up with its first frame, since kernels are kept by shape. The caller drops the surplus.
    """
    waiting: list[Any] = []
    for video in videos:
        waiting.append(video)
        while sum(map(len, waiting)) >= size:
            frames = joined(waiting)
            yield frames[:size]
            waiting = [frames[size:]]
    if missing := -sum(map(len, waiting)) % size:
        frames = joined(waiting)
        yield joined([frames, *[frames[:1]] * missing])


def joined(videos: list[Any]) -> Any:
    if isinstance(videos[0], np.ndarray):
        return np.concatenate(videos)
    import torch

    return torch.cat(videos)


class GivenFeatures:
    """Layout zip_feats: the features that came with the data, checked, at most `max_frames` of them."""

    def __init__(self, manifest: SplitManifest, archive: FeatureArchive | None, dim: int, max_frames: int):
        self.manifest, self.archive, self.dim, self.max_frames = manifest, archive, dim, max_frames

    def shards(self, todo: Iterable[list[str]]) -> Iterator[Shard]:
        for ids in todo:
            shard = Shard([], np.empty((0, self.dim), np.float16), [])
            videos = [self.read(video_id, shard.rejected) for video_id in ids]
            shard.n_frames.extend(map(len, videos))
            yield shard._replace(features=np.concatenate([shard.features, *videos]))

    def read(self, video_id: str, rejected: list[Rejection]) -> Features:
        nothing = np.empty((0, self.dim), np.float16)
        if self.archive is None or self.manifest.find(video_id) is None:
            return nothing
        try:
            features = self.archive.read(video_id)
        except ZipError as error:
            rejected.append((video_id, "", str(error)))
            return nothing
        if features.shape[1] != self.dim:
            rejected.append((video_id, "", f"{features.shape[1]} dimensions in place of {self.dim}"))
            return nothing
        if not np.isfinite(features).all():
            rejected.append((video_id, "", "features are not finite"))
            return nothing
        return features[uniform_indices(len(features), self.max_frames)]


def open_archive(root: Path | str, split: str, manifest: SplitManifest) -> FeatureArchive | None:
    """The archive of a split; None when the manifest lists no video of it."""
    return FeatureArchive(root, split) if len(manifest) else None


def given_dim(root: Path | str) -> int:
    """The usual size of the given features, from the first of them. UserError when there is none."""
    for split in SPLITS:
        archive = open_archive(root, split, SplitManifest(root, split))
        sizes = Counter(given_sizes(archive)) if archive else None
        if sizes:
            return sizes.most_common(1)[0][0]
    raise UserError(f"{root}: no readable features in zip_feats/; copy the archives again")


def given_sizes(archive: FeatureArchive) -> Iterator[int]:
    for video_id in archive.ids[:DIM_SAMPLE].tolist():
        try:
            yield archive.read(video_id.decode("ascii")).shape[1]
        except ZipError:
            continue


@contextlib.contextmanager
def open_source(
    root: Path | str, split: str, encoder: Path | str, max_frames: int, batch_size: int, guard: Callable[[], None]
) -> Iterator[Source]:
    """The features of a split under the encoder saved in the folder `encoder`, whichever layout the data root has.

    `guard` runs before each batch; what it raises stops the work. Workers, device and threads come from the runtime.
    """
    manifest, config = SplitManifest(root, split), read_encoder_config(encoder)
    if read_layout(root) == "zip_feats":
        if config["recipe"] is not None:
            raise UserError(
                f"{encoder}: is an encoder of frames, but {root} holds zip_feats; rebuild it with `dvc repro`"
            )
        yield GivenFeatures(manifest, open_archive(root, split, manifest), config["dim"], max_frames)
        return
    if config["recipe"] is None:
        raise UserError(
            f"{encoder}: stands for given features, but {root} holds zip_frames; rebuild it with `dvc repro`"
        )
    preprocess = Preprocess.from_json(config["preprocess"])
    with open_encoder(Path(root), encoder, preprocess, max_frames, guard) as (videos, encode):

        def guarded(batches: Iterable[Any]) -> Iterator[Any]:
            for batch in batches:
                guard()
                yield batch

        yield EncodedFrames(manifest, videos, lambda batches: encode(guarded(batches)), config["dim"], batch_size)


@contextlib.contextmanager
def open_encoder(
    root: Path, folder: Path | str, preprocess: Preprocess, max_frames: int, guard: Callable[[], None]
) -> Iterator[tuple[Decode, Encode]]:
    """Workers that read and decode, and the tower. torch is imported here: workers import this module and need none."""
    from framefold.models.jpeg_decoder import JpegDecoder
    from framefold.models.vision import FrameEncoder, load_encoder

    runtime = load_runtime()
    runtime.prepare_cpu()
    device = runtime.torch_device()
    with WorkerPool(runtime.workers, guard) as pool:
        if preprocess.decoder == TORCHVISION:
            files = partial(decode, pool, FileReader(str(root), max_frames))
            on_device = JpegDecoder(preprocess, device)
            yield lambda entries: on_device.decode(files(entries)), FrameEncoder(load_encoder(folder), device)
        else:
            videos = partial(decode, pool, Decoder(str(root), preprocess, max_frames))
            yield videos, FrameEncoder(load_encoder(folder), device)


@dataclass(frozen=True)
class Part:
    """The shards that one of several processes or machines makes: every `of`-th, from `number` (0-based) on."""

    number: int = 0
    of: int = 1

    def has(self, shard: int) -> bool:
        return shard % self.of == self.number


def extract(
    source: Source, samples: Path | str, kept: KeptShards, recipe: str, part: Part, guard: Callable[[], None]
) -> list[str]:
    """Make the shards of a samples file that belong to `part` and are not kept already; returns the keys of all.

    `recipe`: digest of all that features depend on besides the videos. `guard` runs before each shard; what it raises
    stops the work.
    """
    keys: list[str] = []
    under_way: deque[tuple[str, list[str]]] = deque()  # key and ids: the source reads ahead
    progress = Progress(f"extract {kept.folder.name}", None, "videos")

    def missing() -> Iterator[list[str]]:
        for number, ids in enumerate(iterate_shards(samples)):
            guard()
            keys.append(shard_key(recipe, source.manifest, ids))
            if part.has(number) and not kept.has(keys[-1]):
                under_way.append((keys[-1], ids))
                yield ids

    made, writing = 0, list[Future[None]]()
    with ThreadPoolExecutor(1) as writer:  # the next shard is encoded meanwhile
        for n_frames, features, rejected in source.shards(missing()):
            key, ids = under_way.popleft()
            while writing:
                writing.pop().result()
            writing.append(writer.submit(kept.write, key, ids, n_frames, features, rejected))
            progress.add(len(ids), also={"frames": sum(n_frames), "rejects": len(rejected)})
            made += 1
        while writing:
            writing.pop().result()
    progress.close(shards=f"{made} made of {len(keys)}")
    return keys


def iterate_shards(samples: Path | str) -> Iterator[list[str]]:
    """The ids of a samples file, shard by shard."""
    return cut_shards(read_ids(samples))


def shard_key(recipe: str, manifest: SplitManifest, ids: list[str]) -> str:
    """Digest of what a shard's features are made of; a video that is not in the manifest has no frames."""
    digest = hashlib.blake2b(recipe.encode(), digest_size=16)
    for video_id in ids:
        entry = manifest.find(video_id)
        digest.update(f"{video_id} {entry.size} {entry.digest}\n".encode() if entry else f"{video_id}\n".encode())
    return digest.hexdigest()


def await_shards(kept: KeptShards, keys: list[str], guard: Callable[[], None]) -> None:
    """Wait until the other processes have made their shards. `torchrun` ends this one too if one of them dies."""
    missing = keys
    while missing := [key for key in missing if not kept.has(key)]:
        guard()
        time.sleep(WAIT_SECONDS)


def read_ids(samples: Path | str) -> Iterator[str]:
    return itertools.chain.from_iterable(
        batch.column("id").to_pylist() for batch in iterate_parquet(samples, columns=["id"])
    )
