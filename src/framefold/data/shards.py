"""Where a split is cut into shards, and the finished shards of a split, kept by what they were made of.

Cuts depend on the ids near them alone: a video that is added or removed changes the shard that it stands in, seldom
another. A shard's key is a digest of all that its features depend on (encoder, sampling, code, the videos' zips), so
whoever finds the key may take the shard: a resumed run, a run on a grown split, another process or machine.

<key>.npy    float16 [frames in shard, dim]
<key>.json   ids, frames per video, rejects, and the digest of the features: written last, so both are there
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from framefold.storage import write_aside

log = logging.getLogger(__name__)

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
        """Whether the shard is there and whole; a damaged one is not, and will be written anew."""
        if not self._sheet(key).is_file():
            return False
        try:
            content = json.loads(self._sheet(key).read_text(encoding="utf-8"))
            with self._features(key).open("rb") as file:
                whole = content.pop("sha256") == hashlib.file_digest(file, "sha256").hexdigest()
            whole = content.pop("digest") == _digest(content) and whole
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            whole = False
        if not whole:
            log.warning("%s: damaged, this shard is made again", self._features(key))
        return whole

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
        with write_aside(self._features(key)) as aside:
            with aside.open("wb") as file:
                np.save(file, features, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            with aside.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        content = {"ids": list(ids), "n_frames": counts, "rejected": [list(entry) for entry in rejected]}
        with write_aside(self._sheet(key)) as aside:
            aside.write_text(json.dumps(content | {"digest": _digest(content), "sha256": sha256}), encoding="utf-8")

    def read(self, key: str) -> KeptShard:
        content = json.loads(self._sheet(key).read_text(encoding="utf-8"))
        return KeptShard(content["ids"], content["n_frames"], [tuple(entry) for entry in content["rejected"]])

    def link(self, key: str, target: Path) -> None:
        """The features under another name: a hard link, since nobody writes into either; else a copy."""
        try:
            os.link(self._features(key), target)
        except OSError:
            shutil.copyfile(self._features(key), target)

    def drop_others(self, keys: Iterable[str]) -> None:
        """Delete all but the shards `keys`."""
        self.folder.mkdir(parents=True, exist_ok=True)  # a split without videos has made none
        wanted = {path for key in keys for path in (self._sheet(key), self._features(key))}
        for path in sorted(self.folder.iterdir(), key=lambda path: path.suffix != ".json"):  # sheets first
            if path not in wanted:
                path.unlink(missing_ok=True)

    def _features(self, key: str) -> Path:
        return self.folder / f"{key}.npy"

    def _sheet(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def _digest(content: dict) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
