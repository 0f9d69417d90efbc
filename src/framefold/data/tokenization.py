"""Text of samples to a token store, batch by batch, counting what gets lost on the way."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
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
    words: bool = False,
) -> dict[str, SegmentCounts]:
    """Encode id, title, asr and ocr of record batches into a token store at `path`, at most `max_tokens` a segment;
    with `words` also which tokens begin one."""
    counts = {name: SegmentCounts() for name in SEGMENTS}
    with token_writer(path, tokenizer.special.size, words) as writer:
        for batch in chain.from_iterable(map(_pieces, batches)):
            texts = [[text or "" for text in batch[name].to_pylist()] for name in SEGMENTS]
            columns = [_encode(tokenizer, part, max_tokens, counts[n]) for n, part in zip(SEGMENTS, texts, strict=True)]
            starts = [_starts(tokenizer, part, max_tokens) for part in texts] if words else []
            writer.write(batch["id"].cast(pa.string()), columns, starts)
            if progress is not None:
                progress.add(batch.num_rows, also={"tokens": sum(len(column.values) for column in columns)})
    return counts


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, BATCH_SIZE):
        yield batch.slice(start, BATCH_SIZE)


def _encode(tokenizer: Tokenizer, texts: list[str], max_tokens: int, counts: SegmentCounts) -> pa.ListArray:
    encoded = tokenizer.encode_batch(texts)
    counts.lengths.update(map(len, encoded))
    kept = [ids[:max_tokens] for ids in encoded]
    values = np.fromiter(chain.from_iterable(kept), dtype=np.int32)
    counts.tokens += len(values)
    counts.unknown += int((values == tokenizer.special.unk).sum())
    return _lists(kept, values)


def _starts(tokenizer: Tokenizer, texts: list[str], max_tokens: int) -> pa.ListArray:
    """Which of the tokens that `_encode` keeps begin a word."""
    from framefold.data.words import word_starts  # has a dictionary to load: not for everyone who tokenizes

    found = []
    for text, (ids, spans) in zip(texts, tokenizer.encode_with_spans(texts), strict=True):
        kept = np.array(ids[:max_tokens], np.int64)
        found.append(word_starts(text, spans[:max_tokens], tokenizer.continues[kept]))
    return _lists(found, np.concatenate([*found, np.zeros(0, np.bool_)]).astype(np.uint8))


def _lists(rows: Sequence[Sized], values: np.ndarray) -> pa.ListArray:
    """The values of rows of these lengths, one after the other, as a column of lists."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _quantile(values: np.ndarray, counts: np.ndarray, q: float) -> int:
    """Smallest value with at least a share `q` of the counts at or below it."""
    if not len(values):
        return 0
    return int(values[np.searchsorted(np.cumsum(counts), q * counts.sum())])
