"""The first pass of ingest: annotations to drafts on disk, what can't be used to rejected.parquet with its reason."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
from framefold.progress import Progress
from framefold.seals import is_whole, sealed_folder
from framefold.storage import iterate_parquet, parquet_writer, read_json, write_json

log = logging.getLogger(__name__)

# Test comes first: of two records with one id the later is rejected, and every test id must be in the submission.
ORDER = ("test", "labeled", "unlabeled")
BATCH = 4096  # rows written at a time
GUARDED = 1024  # records between two looks at the guard
DUPLICATE_ID = "duplicate id"
ID = f"S{MAX_DIGITS}"
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


@dataclass(frozen=True)
class Draft:
    """One split after the first pass: a sealed folder of draft.parquet, rejects.parquet, ids and shingles."""

    split: str
    folder: Path
    records: int  # read
    rows: int  # of draft.parquet: those that were not rejected
    reasons: dict[str, int]  # of the others

    @classmethod
    def of(cls, split: str, folder: Path) -> "Draft":
        return cls(split, folder, **read_json(folder / "counts.json"))

    def iterate(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        return iterate_parquet(self.folder / "draft.parquet", columns, BATCH)


def take_split(
    root: Path, split: str, folder: Path, max_text: int, categories: Categories | None, guard: Callable[[], None]
) -> Draft:
    """First pass over one annotation file, unless an earlier run has finished it. `guard`: what it raises stops it.

    `categories`: the label map; None: what labelled videos have. Memory: 40 bytes a record, the split's manifest.
    """
    if is_whole(folder):
        draft = Draft.of(split, folder)
        log.info("ingest %s: %d records, read before an interruption", split, draft.records)
        return draft
    with sealed_folder(folder) as aside:
        write_json(aside / "counts.json", read_split(root, split, aside, max_text, categories, guard))
    return Draft.of(split, folder)


def read_split(
    root: Path, split: str, folder: Path, max_text: int, categories: Categories | None, guard: Callable[[], None]
) -> dict[str, Any]:
    """Stream one annotation file into the files of a Draft; returns its counts."""
    manifest, known = SplitManifest(root, split), set(categories.names) if categories else None
    progress, reasons = Progress(f"ingest {split}", total=None, unit="records"), Counter[str]()
    file, rows = f"annotations/{split}.json", 0
    with contextlib.ExitStack() as stack:
        draft = stack.enter_context(RowWriter(folder / "draft.parquet", DRAFT_SCHEMA))
        rejects = stack.enter_context(open_rejects(folder / "rejects.parquet"))
        ids = stack.enter_context(open(folder / "ids", "wb"))
        texts = stack.enter_context(contextlib.closing(ShingleWriter(folder)))
        for item in read_annotations(root / file, split == "labeled", max_text):
            if progress.count % GUARDED == 0:
                guard()
            entry = manifest.find(item.id) if isinstance(item, Record) else None
            reason = refusal(item, entry, known) if isinstance(item, Record) else item.reason
            if isinstance(item, Record) and entry is not None and not reason:
                draft.add(*item, entry.frames, entry.size, entry.digest)
                texts.add(f"{item.title} {item.ocr}")
                ids.write(item.id.encode().ljust(MAX_DIGITS, b"\0"))
                rows += 1
            else:
                rejects.add(split, file, item.id, reason)
                reasons[reason] += 1
            progress.add(1)
    progress.close(rejected=str(reasons.total()))
    return {"records": progress.count, "rows": rows, "reasons": dict(reasons)}


class Intake:
    """What came in: the drafts of all splits in ORDER, whose rows are numbered through."""

    def __init__(self, drafts: list[Draft]):
        self.drafts = {draft.split: draft for draft in drafts}
        self.reasons = {draft.split: Counter(draft.reasons) for draft in drafts}

    @property
    def records(self) -> int:
        return sum(draft.records for draft in self.drafts.values())

    @property
    def n(self) -> int:
        return sum(draft.rows for draft in self.drafts.values())

    def rows(self, split: str) -> slice:
        """Where the split stands in arrays over all drafted records."""
        start = sum(self.drafts[earlier].rows for earlier in ORDER[: ORDER.index(split)])
        return slice(start, start + self.drafts[split].rows)

    def ids(self) -> np.ndarray:
        """S20 [n]."""
        ids = np.empty(self.n, ID)
        for split, draft in self.drafts.items():
            with open(draft.folder / "ids", "rb") as file:
                file.readinto(ids[self.rows(split)].view(np.uint8).data)
        return ids

    def write_rejects(self, rejects: RowWriter) -> np.ndarray:
        """All rejects, also for an id that an earlier record has; returns bool [n]: the rows that are kept."""
        for draft in self.drafts.values():
            for batch in iterate_parquet(draft.folder / "rejects.parquet"):
                for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    rejects.add(*row)
        ids = self.ids()
        first = first_of_id(ids)
        for number in np.flatnonzero(~first).tolist():
            split = next(split for split in ORDER if number < self.rows(split).stop)
            rejects.add(split, f"annotations/{split}.json", ids[number].decode(), DUPLICATE_ID)
            self.reasons[split][DUPLICATE_ID] += 1
        return first

    def iterate(self, split: str, kept: np.ndarray, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        """Batches of the kept rows of a draft, with their row numbers over all drafted records."""
        start = self.rows(split).start
        for batch in self.drafts[split].iterate(columns):
            mask = kept[start : start + batch.num_rows]
            yield batch.filter(pa.array(mask)), start + np.flatnonzero(mask)
            start += batch.num_rows


def first_of_id(ids: np.ndarray) -> np.ndarray:
    """bool [n]: False where an earlier row has the same id."""
    order, first = np.argsort(ids, kind="stable"), np.ones(len(ids), bool)
    for start in range(1, len(ids), BATCH):
        now = order[start : start + BATCH]
        first[now] = ids[now] != ids[order[start - 1 : start - 1 + len(now)]]
    return first


def refusal(record: Record, entry: ManifestEntry | None, known: set[str] | None) -> str:
    """Why a well-formed record can't be used; "" when it can."""
    if record.category_id is not None and not is_category(record.category_id):
        return "category_id is not 4 digits"
    if record.category_id is not None and known is not None and record.category_id not in known:
        return "unknown category"
    return "zip missing from frames.manifest" if entry is None else ""


def open_rejects(path: Path) -> RowWriter:
    return RowWriter(path, REJECTED_SCHEMA)
