"""Text of samples to a token store, batch by batch, counting what gets lost on the way."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from framefold.data.tokenizer import Tokenizer
from framefold.data.tokens import SEGMENTS, token_writer
from framefold.progress import Progress

BATCH_SIZE = 1024  # records encoded at once: bounds the memory
QUANTILES = (0.5, 0.9, 0.99)


@dataclass
class SegmentCounts:
    """Counts over one segment of one split; lengths before the cut, so memory does not grow with the records."""

    tokens: int = 0  # stored
    unknown: int = 0  # of those
    lengths: Counter[int] = field(default_factory=Counter)  # records by number of tokens, uncut

    def summary(self, max_tokens: int) -> dict[str, float | int]:
        lengths = np.array(sorted(self.lengths), dtype=np.int64)
        records = np.array([self.lengths[n] for n in lengths.tolist()], dtype=np.int64)
        total, cut = int(records.sum()), int(records[lengths > max_tokens].sum())
        shares = {f"length_q{q * 100:.0f}": _quantile(lengths, records, q) for q in QUANTILES}
        return {
            "empty": self.lengths[0] / max(total, 1),
            "cut": cut / max(total, 1),
            "tokens": self.tokens,
            "unknown": self.unknown / max(self.tokens, 1),
            "length_max": int(lengths.max(initial=0)),
            **shares,
        }


def write_tokens(
    tokenizer: Tokenizer,
    batches: Iterable[pa.RecordBatch],
    path: Path | str,
    max_tokens: int,
    progress: Progress | None = None,
) -> dict[str, SegmentCounts]:
    """Encode id, title, asr and ocr of record batches into a token store at `path`, at most `max_tokens` a segment."""
    counts = {name: SegmentCounts() for name in SEGMENTS}
    with token_writer(path, tokenizer.special.size) as writer:
        for batch in chain.from_iterable(map(_pieces, batches)):
            columns = [_encode(tokenizer, batch[name].to_pylist(), max_tokens, counts[name]) for name in SEGMENTS]
            writer.write(batch["id"].cast(pa.string()), columns)
            if progress is not None:
                progress.add(batch.num_rows, also={"tokens": sum(len(column.values) for column in columns)})
    return counts


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, BATCH_SIZE):
        yield batch.slice(start, BATCH_SIZE)


def _encode(tokenizer: Tokenizer, texts: list[str | None], max_tokens: int, counts: SegmentCounts) -> pa.ListArray:
    encoded = tokenizer.encode_batch([text or "" for text in texts])
    counts.lengths.update(map(len, encoded))
    kept = [ids[:max_tokens] for ids in encoded]
    values = np.fromiter(chain.from_iterable(kept), dtype=np.int32)
    counts.tokens += len(values)
    counts.unknown += int((values == tokenizer.special.unk).sum())
    offsets = np.cumsum([0, *map(len, kept)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _quantile(values: np.ndarray, counts: np.ndarray, q: float) -> int:
    """Smallest value with at least a share `q` of the counts at or below it."""
    if not len(values):
        return 0
    return int(values[np.searchsorted(np.cumsum(counts), q * counts.sum())])
