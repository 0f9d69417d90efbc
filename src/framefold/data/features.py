"""The feature store: frame features of one split under one encoder, in shards that are read through memory maps.

shard-00000.npy   float16 [frames in shard, dim]; a shard holds SHARD_VIDEOS consecutive videos
index.parquet     id, shard int32, offset int64 (frames, within the shard), n_frames int32; row = row of the samples
rejected.parquet  id, member, reason of frames that could not be used
manifest.json     dim, rows, frames of each shard, and how they were made (encoder, weights, normalisation, sampling)
"""

import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from framefold.errors import UserError
from framefold.storage import (
    parquet_writer,
    read_json,
    read_parquet,
    write_aside,
    write_folder_aside,
    write_json,
    write_parquet,
)

SHARD_VIDEOS = 1024  # part of the format: batches end at shard borders, so another value gives other bytes
OPEN_SHARDS = 256  # every open map holds a file descriptor, and a process has about 1,000
INDEX_SCHEMA = pa.schema([("id", pa.string()), ("shard", pa.int32()), ("offset", pa.int64()), ("n_frames", pa.int32())])
REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("member", pa.string()), ("reason", pa.string())])

Rejection = tuple[str, str, str]  # id, member, reason


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.npy"


class FeatureStore:
    """Features of the videos of one split, by row. Opening reads the index alone; shards are mapped when first used.

    Raises UserError when the folder is incomplete or its parts do not belong together.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_json(self.path / "manifest.json")
        self.dim: int = self.manifest["dim"]
        index = read_parquet(self.path / "index.parquet", columns=["shard", "offset", "n_frames"])
        if index.num_rows != self.manifest["rows"]:
            raise UserError(
                f"{self.path}: index.parquet has {index.num_rows} rows, manifest.json says {self.manifest['rows']}; "
                "rebuild it with `dvc repro`"
            )
        self.shard: npt.NDArray[np.int32] = index.column("shard").to_numpy()
        self.offset: npt.NDArray[np.int64] = index.column("offset").to_numpy()
        self.counts: npt.NDArray[np.int32] = index.column("n_frames").to_numpy()  # frames per video (N,)
        self._maps: OrderedDict[int, npt.NDArray[np.float16]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def ids(self) -> pa.ChunkedArray:
        """Video ids in row order; read anew each time, since most readers never ask."""
        return read_parquet(self.path / "index.parquet", columns=["id"]).column("id")

    def frames(
        self, row: int, indices: Sequence[int] | npt.NDArray[np.integer] | None = None
    ) -> npt.NDArray[np.float16]:
        """A copy of the features [n, dim] of one video: all its frames, or those at `indices`."""
        start, count = int(self.offset[row]), int(self.counts[row])
        video = self._map(int(self.shard[row]))[start : start + count]
        return np.array(video if indices is None else video[np.asarray(indices, dtype=np.int64)])

    def _map(self, shard: int) -> npt.NDArray[np.float16]:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        if len(self._maps) >= OPEN_SHARDS:
            self._maps.popitem(last=False)
        self._maps[shard] = self._open(shard)
        return self._maps[shard]

    def _open(self, shard: int) -> npt.NDArray[np.float16]:
        path, expected = self.path / shard_name(shard), (self.manifest["shards"][shard], self.dim)
        if expected[0] == 0:  # no bytes to map
            return np.empty(expected, np.float16)
        try:
            features = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error}); rebuild it with `dvc repro`") from None
        if features.shape != expected or features.dtype != np.float16:
            raise UserError(
                f"{path}: {features.dtype} {list(features.shape)}, manifest.json says float16 {list(expected)}; "
                "rebuild it with `dvc repro`"
            )
        return features

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict()}  # worker processes map the files themselves


class FeatureWriter:
    """Collects finished shards in a scratch folder, then publishes them as a store.

    A shard counts as written once its index part exists, which is written last: a killed run goes on at the first
    shard that is missing. The bytes do not depend on how often it was interrupted.
    """

    def __init__(self, folder: Path | str, dim: int):
        self.folder, self.dim = Path(folder), dim

    def has(self, shard: int) -> bool:
        return self._index(shard).is_file()

    def write(
        self,
        shard: int,
        ids: Sequence[str],
        n_frames: Sequence[int] | npt.NDArray[np.integer],
        features: npt.NDArray[np.float16],
        rejected: Iterable[Rejection],
    ) -> None:
        """Store shard number `shard`: at most SHARD_VIDEOS videos, `features` [sum(n_frames), dim] in their order."""
        counts = np.asarray(n_frames, dtype=np.int32)
        if features.shape != (int(counts.sum()), self.dim) or features.dtype != np.float16 or len(ids) != len(counts):
            raise ValueError(f"{len(ids)} ids, {counts.sum()} frames, features {features.dtype} {features.shape}")
        with write_aside(self.folder / shard_name(shard)) as aside, aside.open("wb") as file:
            np.save(file, features, allow_pickle=False)
        columns = zip(*rejected, strict=True) if (rejected := list(rejected)) else ((), (), ())
        write_parquet(self._rejected(shard), _table(REJECTED_SCHEMA, *map(list, columns)))
        offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[:-1]
        write_parquet(
            self._index(shard), _table(INDEX_SCHEMA, list(ids), np.full(len(ids), shard, np.int32), offsets, counts)
        )

    def publish(
        self,
        target: Path | str,
        n_shards: int,
        manifest: Mapping[str, Any],
        guard: Callable[[], None] | None = None,
    ) -> dict[str, int]:
        """Assemble shards 0..n_shards-1 into the store `target`; returns the counts of videos, frames and rejects.

        `guard` runs last: if it raises, nothing is published.
        """
        frames: list[int] = []
        rows = rejects = 0
        with write_folder_aside(target) as aside:
            with parquet_writer(aside / "index.parquet", INDEX_SCHEMA) as index:
                for shard in range(n_shards):
                    part = read_parquet(self._index(shard))
                    index.write_table(part)
                    rows += part.num_rows
                    frames.append(int(part.column("n_frames").to_numpy().sum()))
                    _link(self.folder / shard_name(shard), aside / shard_name(shard))
            with parquet_writer(aside / "rejected.parquet", REJECTED_SCHEMA) as writer:
                for shard in range(n_shards):
                    part = read_parquet(self._rejected(shard))
                    writer.write_table(part)
                    rejects += part.num_rows
            content = {**manifest, "dim": self.dim, "rows": rows, "shard_videos": SHARD_VIDEOS, "shards": frames}
            write_json(aside / "manifest.json", content)
            if guard is not None:
                guard()
        return {"videos": rows, "frames": sum(frames), "rejected_frames": rejects}

    def _index(self, shard: int) -> Path:
        return self.folder / f"index-{shard:05d}.parquet"

    def _rejected(self, shard: int) -> Path:
        return self.folder / f"rejected-{shard:05d}.parquet"


def _table(schema: pa.Schema, *columns: Any) -> pa.Table:
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _link(source: Path, target: Path) -> None:
    """Hard link, so that the scratch folder stays whole until the store is published; a copy across file systems."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
