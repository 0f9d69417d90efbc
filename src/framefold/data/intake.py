"""The first pass of ingest: annotations to drafts on disk, what can't be used to rejected.parquet with its reason."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from framefold.data.annotations import Record, read_annotations
from framefold.data.categories import Categories, is_category
from framefold.data.ids import MAX_DIGITS
from framefold.data.manifest import ManifestEntry, SplitManifest
from framefold.data.samples import REJECTED_SCHEMA
from framefold.data.shingles import ShingleWriter
from framefold.params.ingest import IngestParams
from framefold.progress import Progress
from framefold.storage import iterate_parquet, parquet_writer

# Test comes first: of two records with one id the later is rejected, and every test id must be in the submission.
ORDER = ("test", "labeled", "unlabeled")
BATCH = 4096  # rows written at a time
DUPLICATE_ID = "duplicate id"
DRAFT_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("id", "title", "asr", "ocr", "category_id")],
        *[("frames", pa.int32()), ("size", pa.uint64()), ("digest", pa.string())],
    ]
)


class RowWriter:
    """Writes tuples to Parquet in batches; the file appears when the block ends without an error."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.schema = path, schema
        self.rows: list[tuple[Any, ...]] = []
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "RowWriter":
        self.writer: pq.ParquetWriter = self.stack.enter_context(parquet_writer(self.path, self.schema))
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self.flush()
        self.stack.__exit__(*error)

    def add(self, *row: Any) -> None:
        self.rows.append(row)
        if len(self.rows) >= BATCH:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            columns = [
                pa.array(column, kind.type)
                for column, kind in zip(zip(*self.rows, strict=True), self.schema, strict=True)
            ]
            self.writer.write_batch(pa.record_batch(columns, schema=self.schema))
            self.rows.clear()


@dataclass
class Intake:
    """What came in. Memory: 20 bytes a record, for comparing ids."""

    root: Path
    scratch: Path  # drafts and shingles
    params: IngestParams
    categories: Categories | None  # None: those seen in labelled
    rejects: RowWriter
    records: Counter[str] = field(default_factory=Counter)  # read, by split
    drafted: dict[str, int] = field(default_factory=dict)  # rows of the draft, by split
    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    ids: bytearray = field(default_factory=bytearray)  # drafted ids as S20, in ORDER

    def draft_path(self, split: str) -> Path:
        return self.scratch / f"{split}.parquet"

    def read_split(self, split: str, texts: ShingleWriter) -> None:
        """Stream one annotation file into a draft."""
        path = self.root / "annotations" / f"{split}.json"
        manifest = SplitManifest(self.root, split)
        known = set(self.categories.names) if self.categories else None
        progress = Progress(f"ingest {split}", total=None, unit="records")
        before = len(self.ids)
        with RowWriter(self.draft_path(split), DRAFT_SCHEMA) as draft:
            for item in read_annotations(path, split == "labeled", self.params.max_text):
                self.records[split] += 1
                entry = manifest.find(item.id) if isinstance(item, Record) else None
                if isinstance(item, Record) and not (reason := refusal(item, entry, known)) and entry is not None:
                    draft.add(*item, entry.frames, entry.size, entry.digest)
                    texts.add(f"{item.title} {item.ocr}")
                    self.ids += item.id.encode().ljust(MAX_DIGITS, b"\0")
                else:
                    self.reject(split, item.id, item.reason if not isinstance(item, Record) else reason)
                progress.add(1)
        self.drafted[split] = (len(self.ids) - before) // MAX_DIGITS
        progress.close(rejected=str(self.records[split] - self.drafted[split]))

    def reject(self, split: str, video_id: str, reason: str) -> None:
        self.rejects.add(split, f"annotations/{split}.json", video_id, reason)
        self.reasons.setdefault(split, Counter())[reason] += 1

    def first_of_id(self) -> np.ndarray:
        """bool [drafted records, in ORDER]: False where an earlier record has the same id; those are rejected here."""
        ids = np.frombuffer(self.ids, f"S{MAX_DIGITS}")
        order = np.argsort(ids, kind="stable")
        first = np.ones(len(ids), bool)
        for start in range(1, len(ids), BATCH):
            now = order[start : start + BATCH]
            first[now] = ids[now] != ids[order[start - 1 : start - 1 + len(now)]]
        for row in np.flatnonzero(~first):
            self.reject(self.split_of(int(row)), ids[row].decode(), DUPLICATE_ID)
        return first

    def split_of(self, row: int) -> str:
        for split in ORDER:
            if row < self.drafted[split]:
                return split
            row -= self.drafted[split]
        raise IndexError(row)

    def rows(self, split: str) -> slice:
        """Where the split stands in arrays over all drafted records."""
        start = sum(self.drafted[earlier] for earlier in ORDER[: ORDER.index(split)])
        return slice(start, start + self.drafted[split])


def refusal(record: Record, entry: ManifestEntry | None, known: set[str] | None) -> str:
    """Why a well-formed record can't be used; "" when it can."""
    if record.category_id is not None and not is_category(record.category_id):
        return "category_id is not 4 digits"
    if record.category_id is not None and known is not None and record.category_id not in known:
        return "unknown category"
    return "zip missing from frames.manifest" if entry is None else ""


def open_rejects(path: Path) -> RowWriter:
    return RowWriter(path, REJECTED_SCHEMA)


def iterate_drafts(
    intake: Intake, split: str, kept: np.ndarray, columns: list[str]
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Batches of the kept rows of a draft, with their row numbers over all drafted records."""
    start = intake.rows(split).start
    for batch in iterate_parquet(intake.draft_path(split), columns, BATCH):
        mask = kept[start : start + batch.num_rows]
        yield batch.filter(pa.array(mask)), start + np.flatnonzero(mask)
        start += batch.num_rows
