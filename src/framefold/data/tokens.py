"""The token store: token ids per text segment, memory-mapped, so that length budgets stay a training parameter."""

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from framefold.errors import UserError
from framefold.storage import read_json, write_aside

SEGMENTS = ("title", "asr", "ocr")
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

    def write(self, ids: pa.Array, segments: Sequence[pa.ListArray]) -> None:
        """`segments`: title, asr, ocr, one list of token ids per video each."""
        arrays = [ids, *(part.cast(field.type) for part, field in zip(segments, list(self.schema)[1:], strict=True))]
        self.sink.write_batch(pa.record_batch(arrays, schema=self.schema))


@contextlib.contextmanager
def token_writer(path: Path | str, vocab_size: int) -> Iterator[TokenWriter]:
    """Write a token store batch by batch; the file appears only when complete. Uncompressed: it is read in place."""
    token = pa.uint16() if vocab_size <= 2**16 else pa.int32()
    schema = pa.schema([("id", pa.string()), *((name, pa.list_(pa.field("item", token, False))) for name in SEGMENTS)])
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


class TokenStore:
    """Token ids of one split, row by row, read in place from `data/tokens/<split>.arrow`.

    `ids` are the videos' ids (pyarrow strings). Rows may be spread over any number of record batches. Pages of the
    memory map are given back after some reads, so a store of millions of videos costs no memory; pickles as its path
    (loader workers).
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._reads = 0
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            table = pa.ipc.open_file(pa.py_buffer(self._map)).read_all()
            self.ids: pa.ChunkedArray = table["id"]
            self._batches = [tuple(_Segment.of(batch[name]) for name in SEGMENTS) for batch in table.to_batches()]
        except (OSError, ValueError, pa.ArrowInvalid, KeyError) as error:
            raise UserError(f"{self.path}: not a token store ({error}); rebuild it with `dvc repro tokenize`") from None
        self._first_rows = np.cumsum([0, *(len(batch[0].offsets) - 1 for batch in self._batches)])

    def __len__(self) -> int:
        return int(self._first_rows[-1])

    def __reduce__(self) -> tuple[type["TokenStore"], tuple[Path]]:
        return TokenStore, (self.path,)

    def segments(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids of title, asr and ocr without special tokens: views into the mapped file, uint16 or int32."""
        if not 0 <= row < len(self):
            raise IndexError(f"{self.path}: row {row} of {len(self)}")
        self._reads += 1
        if self._reads % READS == 0:
            self._give_back()
        number = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        i = row - int(self._first_rows[number])
        title, asr, ocr = (part.values[part.offsets[i] : part.offsets[i + 1]] for part in self._batches[number])
        return title, asr, ocr

    def _give_back(self) -> None:
        """Pages that were read no longer count as this process's memory; the next read of one maps it again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # Linux, BSD and macOS
            self._map.madvise(mmap.MADV_DONTNEED)

    def lengths(self) -> np.ndarray:
        """Tokens stored per segment, int32 [N, 3] (title, asr, ocr), from the offsets alone."""
        parts = [np.stack([np.diff(part.offsets) for part in batch], axis=1) for batch in self._batches]
        return np.concatenate([np.empty((0, len(SEGMENTS)), np.int32), *parts])


def check_aligned(ids_a: pa.ChunkedArray, ids_b: pa.ChunkedArray, where: str) -> None:
    """Row i must be the same video in both stores.

    Raises UserError with the first row that differs; `where` names the two stores.
    """
    if ids_a.equals(ids_b):
        return
    if len(ids_a) != len(ids_b):
        raise UserError(f"{where}: {len(ids_a)} videos against {len(ids_b)}; rebuild both with `dvc repro`")
    row = next(i for i, (a, b) in enumerate(zip(ids_a, ids_b, strict=True)) if a != b)
    raise UserError(f"{where}: row {row} is video {ids_a[row]} against {ids_b[row]}; rebuild both with `dvc repro`")
