"""Where a split is cut into shards, and the finished shards of a split, kept by what they were made of.

Cuts depend on the ids near them alone: a video that is added or removed changes the shard that it stands in, seldom
another. A shard's key is a digest of all that its features depend on (encoder, sampling, code, the videos' zips), so
whoever finds the key may take the shard: a resumed run, a run on a grown split, another process or machine.

<key>.npy        float16 [frames in shard, dim]
<key>.npy.seal   ids, frames per video, rejects, and the digest of the features: written last, so both are there
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from framefold.seals import SEAL, about, is_whole, seal, seal_of
from framefold.storage import link_or_copy, write_aside

# Videos in a shard: part of the format, since batches end at shard borders and other borders give other bytes.
MIN_VIDEOS, MEAN_MORE, MAX_VIDEOS = 256, 768, 2048
Rejection = tuple[str, str, str]  # id, member, reason


class KeptShard(NamedTuple):
    """All of a shard but its features."""

    ids: list[str]
    n_frames: list[int]
    rejected: list[Rejection]


def cut_shards(ids: Iterable[str]) -> Iterator[list[str]]:
    """Consecutive ids in shards of MIN_VIDEOS to MAX_VIDEOS (the last may be smaller), about 1,000 on average.

    A shard ends after an id whose hash says so (content-defined chunking, as in rsync and restic).
    """
    shard: list[str] = []
    for video_id in ids:
        shard.append(video_id)
        if len(shard) >= MAX_VIDEOS or (len(shard) >= MIN_VIDEOS and _ends_shard(video_id)):
            yield shard
            shard = []
    if shard:
        yield shard


def _ends_shard(video_id: str) -> bool:
    return int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8).digest(), "little") % MEAN_MORE == 0


class KeptShards:
    """A folder of finished shards. Several processes may write to it: a key's bytes are the same, whoever writes."""

    def __init__(self, folder: Path | str, dim: int):
        self.folder, self.dim = Path(folder), dim

    def has(self, key: str) -> bool:
        """Whether the shard is there and whole; a damaged one is to be written anew."""
        return is_whole(self._features(key))

    def write(
        self,
        key: str,
        ids: Sequence[str],
        n_frames: Sequence[int],
        features: npt.NDArray[np.float16],
        rejected: Iterable[Rejection],
    ) -> None:
        """Keep a shard: `features` [sum(n_frames), dim] of the videos `ids` in their order."""
        counts = [int(count) for count in n_frames]
        if features.shape != (sum(counts), self.dim) or features.dtype != np.float16 or len(ids) != len(counts):
            raise ValueError(f"{len(ids)} ids, {sum(counts)} frames, features {features.dtype} {features.shape}")
        sheet = {"ids": list(ids), "n_frames": counts, "rejected": [list(entry) for entry in rejected]}
        # not unsealed before: another process may have made the same shard meanwhile, and be reading it
        with write_aside(self._features(key)) as aside, aside.open("wb") as file:
            np.save(file, features, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        seal(self._features(key), sheet)

    def read(self, key: str) -> KeptShard:
        sheet = about(self._features(key))
        return KeptShard(sheet["ids"], sheet["n_frames"], [tuple(entry) for entry in sheet["rejected"]])

    def link(self, key: str, target: Path) -> None:
        """The features under another name: nobody writes into either."""
        link_or_copy(self._features(key), target)

    def drop_others(self, keys: Iterable[str]) -> None:
        """Delete all but the shards `keys`."""
        self.folder.mkdir(parents=True, exist_ok=True)  # a split without videos has made none
        wanted = {path for key in keys for path in (self._features(key), seal_of(self._features(key)))}
        for path in sorted(self.folder.iterdir(), key=lambda path: path.suffix != SEAL):  # seals first
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _features(self, key: str) -> Path:
        return self.folder / f"{key}.npy"
