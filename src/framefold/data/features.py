"""The feature store: frame features of one split under one encoder, in shards that are read by position.

shard-00000.npy   float16 [frames in shard, dim], of consecutive videos (data/shards.py says where they are cut)
index.parquet     id, shard int32, offset int64 (frames, within the shard), n_frames int32; row = row of the samples
rejected.parquet  id, member, reason of frames that could not be used
manifest.json     dim, rows, frames of each shard, and how they were made (encoder, weights, normalisation, sampling)
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from framefold.data.array_files import ArrayFile
from framefold.data.shards import KeptShards
from framefold.errors import UserError
from framefold.storage import iterate_parquet, parquet_writer, read_json, write_folder_aside, write_json

OPEN_SHARDS = 256  # each holds a file descriptor, and a process has about 1,000
INDEX_SCHEMA = pa.schema([("id", pa.string()), ("shard", pa.int32()), ("offset", pa.int64()), ("n_frames", pa.int32())])
REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("member", pa.string()), ("reason", pa.string())])


def shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.npy"


class FeatureStore:
    """Features of the videos of one split, by row. Opening reads the index alone; shards are opened when first used.

    Raises UserError when the folder is incomplete or its parts do not belong together.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_json(self.path / "manifest.json")
        self.dim: int = self.manifest["dim"]
        rows = self.manifest["rows"]
        self.shard: npt.NDArray[np.int32] = np.empty(rows, np.int32)
        self.offset: npt.NDArray[np.int64] = np.empty(rows, np.int64)
        self.counts: npt.NDArray[np.int32] = np.empty(rows, np.int32)  # frames per video (N,)
        self._read_index(rows)
        self._files: OrderedDict[int, ArrayFile] = OrderedDict()

    def _read_index(self, rows: int) -> None:
        """Batch by batch: Parquet's own table would take several times the memory of these columns."""
        found = 0
        for batch in iterate_parquet(self.path / "index.parquet", ["shard", "offset", "n_frames"]):
            part = slice(found, found + batch.num_rows)
            found = part.stop
            if found <= rows:
                self.shard[part], self.offset[part], self.counts[part] = (column.to_numpy() for column in batch.columns)
        if found != rows:
            raise UserError(
                f"{self.path}: index.parquet has {found} rows, manifest.json says {rows}; rebuild it with `dvc repro`"
            )

    def __len__(self) -> int:
        return len(self.counts)

    def iterate_ids(self) -> Iterator[pa.Array]:
        """Video ids in row order, piece by piece; read anew each time, since most readers never ask."""
        for batch in iterate_parquet(self.path / "index.parquet", ["id"]):
            yield batch.column(0)

    @property
    def ids(self) -> pa.ChunkedArray:
        """All video ids in row order."""
        return pa.chunked_array(list(self.iterate_ids()), pa.string())

    def frames(
        self, row: int, indices: Sequence[int] | npt.NDArray[np.integer] | None = None
    ) -> npt.NDArray[np.float16]:
        """A copy of the features [n, dim] of one video: all its frames, or those at `indices`."""
        count = int(self.counts[row])
        if count == 0:
            return np.empty((0, self.dim), np.float16)
        video = self._shard(int(self.shard[row])).rows(int(self.offset[row]), count)
        return np.array(video if indices is None else video[np.asarray(indices, dtype=np.int64)])

    def _shard(self, shard: int) -> ArrayFile:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= OPEN_SHARDS:
            self._files.popitem(last=False)
        self._files[shard] = self._open(shard)
        return self._files[shard]

    def _open(self, shard: int) -> ArrayFile:
        path, expected = self.path / shard_name(shard), (self.manifest["shards"][shard], self.dim)
        try:
            features = ArrayFile(path)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read ({error}); rebuild it with `dvc repro`") from None
        if features.shape != expected or features.dtype != np.float16:
            raise UserError(
                f"{path}: {features.dtype} {list(features.shape)}, manifest.json says float16 {list(expected)}; "
                "rebuild it with `dvc repro`"
            )
        return features

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}  # worker processes open the files themselves


def write_store(
    target: Path | str,
    kept: KeptShards,
    keys: Sequence[str],
    manifest: Mapping[str, Any],
    guard: Callable[[], None] | None = None,
) -> dict[str, int]:
    """Assemble the shards `keys` into the store `target`; returns the counts of videos, frames and rejects.

    `guard` runs last: if it raises, nothing is published.
    """
    frames: list[int] = []
    rows = rejects = 0
    with write_folder_aside(target) as aside:
        with (
            parquet_writer(aside / "index.parquet", INDEX_SCHEMA) as index,
            parquet_writer(aside / "rejected.parquet", REJECTED_SCHEMA) as rejected,
        ):
            for number, key in enumerate(keys):
                shard = kept.read(key)
                counts = np.array(shard.n_frames, np.int32)
                offsets = np.cumsum(counts, dtype=np.int64) - counts
                numbers = np.full(len(counts), number, np.int32)
                index.write_table(_table(INDEX_SCHEMA, shard.ids, numbers, offsets, counts))
                rejected.write_table(_table(REJECTED_SCHEMA, *_columns(shard.rejected, 3)))
                kept.link(key, aside / shard_name(number))
                rows, rejects = rows + len(counts), rejects + len(shard.rejected)
                frames.append(int(counts.sum()))
        write_json(aside / "manifest.json", {**manifest, "dim": kept.dim, "rows": rows, "shards": frames})
        if guard is not None:
            guard()
    return {"videos": rows, "frames": sum(frames), "rejected_frames": rejects}


def _columns(rows: Iterable[Sequence[str]], n: int) -> list[list[str]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(n)]


def _table(schema: pa.Schema, *columns: Any) -> pa.Table:
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
