"""The token store: token ids per text segment, memory-mapped, so that length budgets stay a training parameter."""

import contextlib
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from framefold.errors import UserError
from framefold.storage import read_json, write_aside

SEGMENTS = ("title", "asr", "ocr")
STARTS = tuple(f"{name}_starts" for name in SEGMENTS)  # which tokens begin a word; not in every store
READS = 1024  # videos read between two times that the pages of the map are given back
SPECIAL_NAMES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens, and the number of entries of their vocabulary."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    size: int

    @property
    def ids(self) -> tuple[int, ...]:
        """The five special ids: never masked, never drawn as a random replacement."""
        return (self.pad, self.unk, self.cls, self.sep, self.mask)


def read_special_tokens(folder: Path | str) -> SpecialTokens:
    """From `config.json` of a tokenizer folder, without loading the tokenizer itself."""
    path = Path(folder) / "config.json"
    content = read_json(path)
    try:
        return SpecialTokens(**{name: int(content[name]) for name in (*SPECIAL_NAMES, "size")})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a tokenizer's config ({error!r}); rebuild it with `dvc repro tokenize`") from None


class TokenWriter:
    """Appends record batches to a token store; made by `token_writer`."""

    def __init__(self, sink: pa.ipc.RecordBatchFileWriter, schema: pa.Schema):
        self.sink, self.schema = sink, schema

    def write(self, ids: pa.Array, segments: Sequence[pa.ListArray], starts: Sequence[pa.ListArray] = ()) -> None:
        """`segments`: title, asr, ocr, one list of token ids per video each; `starts`: alike, 1 where a word begins."""
        columns = [*segments, *starts]
        arrays = [ids, *(part.cast(field.type) for part, field in zip(columns, list(self.schema)[1:], strict=True))]
        self.sink.write_batch(pa.record_batch(arrays, schema=self.schema))


@contextlib.contextmanager
def token_writer(path: Path | str, vocab_size: int, words: bool = False) -> Iterator[TokenWriter]:
    """Write a token store batch by batch, with the beginnings of words if `words`; the file appears only when complete.

    Uncompressed: it is read in place.
    """
    token = pa.uint16() if vocab_size <= 2**16 else pa.int32()
    kinds = dict.fromkeys(SEGMENTS, token) | (dict.fromkeys(STARTS, pa.uint8()) if words else {})
    lists = ((name, pa.list_(pa.field("item", kind, False))) for name, kind in kinds.items())
    schema = pa.schema([("id", pa.string()), *lists])
    with write_aside(path) as aside, pa.ipc.new_file(str(aside), schema) as sink:
        yield TokenWriter(sink, schema)


@dataclass(frozen=True)
class _Segment:
    """One list column of one record batch: the values of row i are `values[offsets[i]:offsets[i + 1]]`."""

    offsets: np.ndarray  # int32 [rows + 1]
    values: np.ndarray

    @classmethod
    def of(cls, column: pa.ListArray) -> Self:
        return cls(column.offsets.to_numpy(), column.values.to_numpy())

    def row(self, i: int) -> np.ndarray:
        return self.values[self.offsets[i] : self.offsets[i + 1]]


class TokenStore:
    """Token ids of one split, row by row, read in place from `data/tokens/<split>.arrow`.

    Rows may be spread over any number of record batches. Pages of the memory map are given back after some reads, so a
    store of millions of videos costs no memory; pickles as its path (loader workers).
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._reads = 0
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            table = pa.ipc.open_file(pa.py_buffer(self._map)).read_all()
            batches = table.to_batches()
            self._ids = [batch["id"] for batch in batches]
            self._batches = [tuple(_Segment.of(batch[name]) for name in SEGMENTS) for batch in batches]
            self.has_words = STARTS[0] in table.column_names
            names = STARTS if self.has_words else ()
            self._starts = [tuple(_Segment.of(batch[name]) for name in names) for batch in batches]
        except (OSError, ValueError, pa.ArrowInvalid, KeyError) as error:
            raise UserError(f"{self.path}: not a token store ({error}); rebuild it with `dvc repro tokenize`") from None
        self._first_rows = np.cumsum([0, *(len(batch[0].offsets) - 1 for batch in self._batches)])
        self._give_back()

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        return TokenStore, (self.path,)

    def segments(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids of title, asr and ocr without special tokens: views into the mapped file, uint16 or int32."""
        number, i = self._place(row)
        title, asr, ocr = (part.row(i) for part in self._batches[number])
        return title, asr, ocr

    def word_starts(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which of those tokens begin a word, bool views into the mapped file; only of a store that `has_words`."""
        number, i = self._place(row)
        title, asr, ocr = (part.row(i).view(np.bool_) for part in self._starts[number])
        return title, asr, ocr

    @property
    def ids(self) -> pa.ChunkedArray:
        """All ids in row order."""
        return pa.chunked_array(self._ids, pa.string())

    def ids_at(self, rows: Iterable[int]) -> list[str]:
        """Ids of some rows; a look-up in all of them together would take 10 ms for a batch out of a million."""
        return [self._ids[number][i].as_py() for number, i in map(self._place, rows)]

    def iterate_ids(self) -> Iterator[pa.Array]:
        """All ids in row order, piece by piece."""
        for ids in self._ids:
            yield ids
            self._count(len(ids))

    def _place(self, row: int) -> tuple[int, int]:
        """Record batch of a row, and its row in there."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path}: row {row} of {len(self)}")
        self._count(1)
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        return number, row - int(self._first_rows[number])

    def _count(self, reads: int) -> None:
        self._reads += reads
        if self._reads >= READS:
            self._reads = 0
            self._give_back()

    def _give_back(self) -> None:
        """Pages that were read no longer count as this process's memory; the next read of one maps it again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # Linux, BSD and macOS
            self._map.madvise(mmap.MADV_DONTNEED)

    def lengths(self) -> np.ndarray:
        """Tokens stored per segment, int32 [N, 3] (title, asr, ocr), from the offsets alone."""
        lengths = np.empty((len(self), len(SEGMENTS)), np.int32)
        for first, batch in zip(self._first_rows.tolist(), self._batches, strict=False):
            for column, part in enumerate(batch):
                lengths[first : first + len(part.offsets) - 1, column] = np.diff(part.offsets)
            self._count(len(batch[0].offsets) - 1)
        return lengths


def joined(segments: Iterable[np.ndarray], budgets: Iterable[int], cls: np.ndarray, sep: np.ndarray) -> np.ndarray:
    """One video's [CLS] title [SEP] asr [SEP] ocr [SEP] within the budgets, an empty segment left out with its [SEP].

    Of whatever belongs to its tokens; cls and sep (1,): what stands for these two.
    """
    parts = [cls]
    for segment, budget in zip(segments, budgets, strict=True):
        if len(segment) and budget:
            parts += [segment[:budget], sep]
    return np.concatenate(parts if len(parts) > 1 else [cls, sep])


def check_aligned(ids_a: Iterable[pa.Array], ids_b: Iterable[pa.Array], where: str) -> None:
    """Row i must be the same video in both stores; ids come piece by piece, in pieces of any size.

    Raises UserError with the first row that differs; `where` names the two stores.
    """
    row, pieces_a, pieces_b = 0, iter(ids_a), iter(ids_b)
    a = b = pa.array([], pa.string())
    while True:
        a = a if len(a) else next((piece for piece in pieces_a if len(piece)), a)
        b = b if len(b) else next((piece for piece in pieces_b if len(piece)), b)
        common = min(len(a), len(b))
        if common == 0:
            break
        _check_equal(a[:common], b[:common], row, where)
        a, b, row = a[common:], b[common:], row + common
    rows = [row + len(rest) + sum(map(len, pieces)) for rest, pieces in ((a, pieces_a), (b, pieces_b))]
    if rows[0] != rows[1]:
        raise UserError(f"{where}: {rows[0]} videos against {rows[1]}; rebuild both with `dvc repro`")


def _check_equal(a: pa.Array, b: pa.Array, first_row: int, where: str) -> None:
    if not a.equals(b):
        i = next(i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1])
        raise UserError(f"{where}: row {first_row + i} is video {a[i]} against {b[i]}; rebuild both with `dvc repro`")
