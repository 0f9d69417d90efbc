"""Text and frames of consecutive videos, cut into blocks and held only as long as a block takes to predict."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from framefold.data.extraction import Shard
from framefold.storage import iterate_parquet


class HeldFeatures:
    """Features in memory, read like a FeatureStore: `features` [sum(counts), dim], in the order of `ids`."""

    path = Path("features")  # for messages

    def __init__(self, ids: Sequence[str], counts: npt.NDArray[np.int32], features: npt.NDArray[np.float16]):
        self.ids = ids
        self.counts, self.features, self.dim = counts, features, features.shape[1]
        self.offset = np.cumsum(counts, dtype=np.int64) - counts

    def __len__(self) -> int:
        return len(self.counts)

    def iterate_ids(self) -> Iterator[pa.Array]:
        yield pa.array(self.ids, pa.string())

    def frames(
        self, row: int, indices: Sequence[int] | npt.NDArray[np.integer] | None = None
    ) -> npt.NDArray[np.float16]:
        """The features [n, dim] of one video: all its frames, or those at `indices`."""
        video = self.features[self.offset[row] : self.offset[row] + self.counts[row]]
        return video if indices is None else video[np.asarray(indices, dtype=np.int64)]


@dataclass
class Waiting:
    """Videos that do not fill a block yet."""

    ids: list[str]
    counts: npt.NDArray[np.int32]
    features: npt.NDArray[np.float16]

    def add(self, ids: list[str], shard: Shard) -> None:
        self.ids = self.ids + ids
        self.counts = np.concatenate([self.counts, np.asarray(shard.n_frames, np.int32)])
        self.features = np.concatenate([self.features, shard.features])

    def take(self, size: int) -> HeldFeatures:
        """The first `size` videos; a copy, so that the rest does not hold their memory."""
        frames = int(self.counts[:size].sum())
        taken = HeldFeatures(self.ids[:size], self.counts[:size], self.features[:frames].copy())
        self.ids, self.counts, self.features = self.ids[size:], self.counts[size:], self.features[frames:]
        return taken


def feature_blocks(shards: Iterable[tuple[list[str], Shard]], size: int) -> Iterator[HeldFeatures]:
    """The videos of consecutive shards, of whatever size, in blocks of `size`; the last block may be smaller."""
    waiting: Waiting | None = None
    for ids, shard in shards:
        waiting = waiting or Waiting([], np.empty(0, np.int32), shard.features[:0])
        waiting.add(ids, shard)
        while len(waiting.ids) >= size:
            yield waiting.take(size)
    if waiting and waiting.ids:
        yield waiting.take(size)


def text_blocks(samples: Path, size: int) -> Iterator[pa.RecordBatch]:
    """The rows of a samples file in blocks of `size`; the last one may be smaller."""
    waiting: list[pa.RecordBatch] = []
    for batch in iterate_parquet(samples):
        table = pa.Table.from_batches([*waiting, batch])
        whole = table.num_rows - table.num_rows % size
        for start in range(0, whole, size):
            yield from table.slice(start, size).combine_chunks().to_batches()
        waiting = table.slice(whole).to_batches()
    if waiting:
        yield from pa.Table.from_batches(waiting).combine_chunks().to_batches()
