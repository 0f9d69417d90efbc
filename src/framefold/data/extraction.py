"""Frames of one split to features: decoded in worker processes, encoded in fixed batches, written shard by shard.

Batches are filled with the frames of a shard in order and end with it, so the features depend neither on the number of
workers nor on where an interrupted run went on.
"""

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from framefold.data.decoding import Decoded, Decoder, DecoderPool, Pixels, batched
from framefold.data.feature_archives import FeatureArchive
from framefold.data.features import SHARD_VIDEOS, FeatureWriter, Rejection
from framefold.data.frames import uniform_indices
from framefold.data.images import Preprocess, read_encoder_config
from framefold.data.manifest import SPLITS, SplitManifest, read_layout
from framefold.data.zip_directory import ZipError
from framefold.errors import UserError
from framefold.progress import Progress
from framefold.runtime import Runtime, load_runtime
from framefold.storage import iterate_parquet

Features = npt.NDArray[np.float16]  # [n, dim]
Encode = Callable[[Pixels], Features]  # of one batch
DIM_SAMPLE = 100  # given features that are asked for their size


class Shard(NamedTuple):
    """The features of consecutive videos, and the frames that could not be used."""

    n_frames: list[int]
    features: Features
    rejected: list[Rejection]


class Source(Protocol):
    """Where features come from: encoded frames, or features that the data set brings."""

    dim: int

    def shard(self, ids: list[str]) -> Shard: ...


class EncodedFrames:
    """Layout zip_frames: decode and encode."""

    def __init__(self, manifest: SplitManifest, pool: DecoderPool, encode: Encode, dim: int, batch_size: int):
        self.manifest, self.pool, self.encode, self.dim, self.batch_size = manifest, pool, encode, dim, batch_size

    def shard(self, ids: list[str]) -> Shard:
        shard = Shard([], np.empty((0, self.dim), np.float16), [])
        videos = self.pool.decode(map(self.manifest.find, ids))
        batches = [self.encode(batch) for batch in fill_batches(note(videos, ids, shard), self.batch_size)]
        return shard._replace(features=np.concatenate([shard.features, *batches]))


def note(videos: Iterable[Decoded], ids: list[str], shard: Shard) -> Iterator[Pixels]:
    """Pass the pixels on; record counts and problems."""
    for video_id, video in zip(ids, videos, strict=True):
        shard.n_frames.append(len(video.pixels))
        shard.rejected.extend((video_id, member, reason) for member, reason in video.problems)
        yield video.pixels


def fill_batches(videos: Iterable[Pixels], size: int) -> Iterator[Pixels]:
    """Batches of `size` frames across videos, the last one smaller. Holds one batch and one video."""
    waiting: list[Pixels] = []
    for video in videos:
        waiting.append(video)
        while sum(map(len, waiting)) >= size:
            frames = np.concatenate(waiting)
            yield frames[:size]
            waiting = [frames[size:]]
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)


class GivenFeatures:
    """Layout zip_feats: the features that came with the data, checked, at most `max_frames` of them."""

    def __init__(self, manifest: SplitManifest, archive: FeatureArchive | None, dim: int, max_frames: int):
        self.manifest, self.archive, self.dim, self.max_frames = manifest, archive, dim, max_frames

    def shard(self, ids: list[str]) -> Shard:
        shard = Shard([], np.empty((0, self.dim), np.float16), [])
        videos = [self.read(video_id, shard.rejected) for video_id in ids]
        shard.n_frames.extend(map(len, videos))
        return shard._replace(features=np.concatenate([shard.features, *videos]))

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
    runtime = load_runtime()
    decoder = Decoder(str(root), Preprocess.from_json(config["preprocess"]), max_frames)
    with DecoderPool(decoder, runtime.workers) as pool:
        encode = load_frame_encoder(encoder, runtime)

        def guarded(batch: Pixels) -> Features:
            guard()
            return encode(batch)

        yield EncodedFrames(manifest, pool, guarded, config["dim"], batch_size)


def load_frame_encoder(folder: Path | str, runtime: Runtime) -> Encode:
    """torch and the tower, imported here: workers import this module too and need neither."""
    from framefold.models.vision import FrameEncoder, load_encoder

    runtime.prepare_cpu()
    return FrameEncoder(load_encoder(folder), runtime.torch_device())


def extract(
    source: Source,
    samples: Path | str,
    writer: FeatureWriter,
    target: Path | str,
    manifest: Mapping[str, Any],
    guard: Callable[[], None],
) -> dict[str, int]:
    """Write the features of all rows of a samples file to the store `target`; shards that `writer` has are kept.

    `guard` runs before each shard and before the store is published. Returns counts of videos, frames and rejects.
    """
    progress, frames, n_shards = Progress(f"extract {target}", None, "videos"), 0, 0
    for ids in iterate_shards(samples):
        if not writer.has(n_shards):
            guard()
            shard = source.shard(ids)
            writer.write(n_shards, ids, *shard)
            frames += sum(shard.n_frames)
            progress.add(len(ids), **frame_rate(progress, frames))
        n_shards += 1
    counts = writer.publish(target, n_shards, manifest, guard)
    progress.close(**frame_rate(progress, frames), rejected=str(counts["rejected_frames"]))
    return counts


def frame_rate(progress: Progress, frames: int) -> dict[str, str]:
    return {"frames": f"{frames} ({frames / max(time.monotonic() - progress.started, 1e-9):.0f}/s)"}


def iterate_shards(samples: Path | str) -> Iterator[list[str]]:
    """The ids of consecutive shards of a samples file."""
    return batched(read_ids(samples), SHARD_VIDEOS)


def read_ids(samples: Path | str) -> Iterator[str]:
    return itertools.chain.from_iterable(
        batch.column("id").to_pylist() for batch in iterate_parquet(samples, columns=["id"])
    )
