"""Annotations and frames.manifest to samples, duplicate groups and rejects: in two passes, in constant memory.

First pass: every annotation file is streamed into a draft on disk, with the shingles of its texts. Then ids are
compared, frames are hashed and duplicates grouped. Second pass: drafts become samples, now that labels and groups are
known. Drafts and hashes are kept in the stage's scratch folder until all is published; the rest is short.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from framefold.data import manifest as manifests
from framefold.data.categories import Categories, make_categories, read_label_map
from framefold.data.duplicates import BLOCK, group_duplicates
from framefold.data.frame_hashes import hash_all
from framefold.data.intake import ORDER, Intake, open_rejects, take_split
from framefold.data.manifest import ManifestEntry
from framefold.data.samples import FOLDER, REJECTED, SCHEMA, SPLITS, TEXTS
from framefold.data.shingles import ShingleStore
from framefold.errors import UserError
from framefold.params.data import DataParams
from framefold.params.ingest import DuplicateParams, IngestParams
from framefold.storage import parquet_writer, write_folder_aside

Guard = Callable[[], None]


def ingest(data: DataParams, params: IngestParams, workers: int, scratch: Path, guard: Guard) -> dict[str, Any]:
    """Write data/samples/ and data/rejected.parquet; returns the counts for metrics/ingest.json.

    `scratch` keeps what is finished, for a run after this one was killed. `guard` runs now and then, and before
    anything is published; what it raises stops the work. Raises UserError when a file can't be read at all, a zip
    changed since the manifest was written, or too much was rejected.
    """
    root, given = Path(data.root), read_label_map(Path(data.categories)) if data.categories else None
    intake = Intake([take_split(root, split, scratch / split, params.max_text, given, guard) for split in ORDER])
    with open_rejects(REJECTED) as rejects:
        kept = intake.write_rejects(rejects)
        guard()
    check_rejected(root, intake, params.max_rejected)
    categories = given or seen_categories(intake, kept)
    hashes, hashed = hash_frames(root, intake, kept, workers, scratch, guard)
    groups = find_groups(intake, kept, hashes, hashed, params.duplicates, guard)
    del hashes, hashed
    with write_folder_aside(FOLDER) as folder:
        categories.write(folder / "categories.json")
        missing = {split: write_samples(folder, intake, split, kept, groups, categories) for split in SPLITS}
        guard()
    return summary(intake, kept, groups, categories) | {"missing": missing}


def check_rejected(root: Path, intake: Intake, max_rejected: float) -> None:
    reasons = Counter[str]()
    for split, counts in intake.reasons.items():
        reasons.update({f"{count} {reason} ({split}.json)": count for reason, count in counts.items()})
    if reasons.total() > max_rejected * intake.records:
        listed = ", ".join(text for text, _ in reasons.most_common(5))
        raise UserError(
            f"ingest: {reasons.total()} of {intake.records} records rejected, ingest.max_rejected allows "
            f"{max_rejected:.2%}: {listed}; see {REJECTED}, then correct the data or raise the limit"
        )
    if intake.drafts["labeled"].rows == 0:
        raise UserError(f"{root}/annotations/labeled.json: no usable labelled video; add some")


def seen_categories(intake: Intake, kept: np.ndarray) -> Categories:
    names: set[str] = set()
    for batch, _ in intake.iterate("labeled", kept, ["category_id"]):
        names.update(batch.column("category_id").unique().to_pylist())
    return make_categories(names)


def hash_frames(
    root: Path, intake: Intake, kept: np.ndarray, workers: int, scratch: Path, guard: Guard
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of first and last frame, uint64 [drafted, 2], and which there are, bool [drafted, 2]."""
    hashes, hashed = np.zeros((len(kept), 2), np.uint64), np.zeros((len(kept), 2), bool)
    if manifests.read_layout(root) == "zip_frames":
        rows, done = np.flatnonzero(kept), 0
        for found, usable in hash_all(root, kept_entries(intake, kept), len(rows), scratch, workers, guard):
            part = rows[done : done + len(found)]
            hashes[part], hashed[part] = found, usable
            done += len(found)
    return hashes, hashed


def find_groups(
    intake: Intake, kept: np.ndarray, hashes: np.ndarray, hashed: np.ndarray, params: DuplicateParams, guard: Guard
) -> np.ndarray:
    """int32 [drafted]: number of the first row of each row's duplicate group."""
    with contextlib.closing(ShingleStore([draft.folder for draft in intake.drafts.values()])) as texts:
        return group_duplicates(texts, hashes, hashed, kept, params, guard)


def kept_entries(intake: Intake, kept: np.ndarray) -> Iterator[ManifestEntry]:
    for split in ORDER:
        for batch, _ in intake.iterate(split, kept, ["id", "size", "digest", "frames"]):
            columns = (column.to_pylist() for column in batch.columns)
            for video_id, size, digest, frames in zip(*columns, strict=True):
                yield ManifestEntry(split, video_id, size, digest, frames)


def write_samples(
    folder: Path, intake: Intake, split: str, kept: np.ndarray, groups: np.ndarray, categories: Categories
) -> dict[str, int]:
    """Second pass over one split; returns how many videos lack what."""
    names = pa.array(categories.names, pa.string())
    missing: Counter[str] = Counter()
    with parquet_writer(folder / f"{split}.parquet", SCHEMA) as writer:
        for batch, rows in intake.iterate(split, kept, ["id", *TEXTS, "category_id", "frames"]):
            label = pc.fill_null(pc.index_in(batch.column("category_id"), names), -1)
            group = pa.array(groups[rows].astype(np.int64))
            columns = [batch.column(name) for name in ("id", *TEXTS, "category_id")] + [
                label,
                group,
                batch.column("frames"),
            ]
            writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
            empty = {name: pc.equal(batch.column(name), "").to_numpy(False) for name in TEXTS}
            empty["frames"] = batch.column("frames").to_numpy() == 0
            empty["everything"] = np.logical_and.reduce(list(empty.values()))
            missing.update({name: int(mask.sum()) for name, mask in empty.items()})
    return {name: missing[name] for name in (*TEXTS, "frames", "everything")}


def summary(intake: Intake, kept: np.ndarray, groups: np.ndarray, categories: Categories) -> dict[str, Any]:
    return {
        "records": {split: intake.drafts[split].records for split in SPLITS},
        "samples": {split: int(kept[intake.rows(split)].sum()) for split in SPLITS},
        "rejected": {split: dict(sorted(intake.reasons[split].items())) for split in SPLITS},
        "categories": {"level1": len(categories.level1), "level2": len(categories.names)},
        "duplicates": count_duplicates(intake, kept, groups),
    }


def count_duplicates(intake: Intake, kept: np.ndarray, groups: np.ndarray) -> dict[str, int]:
    """Groups of two and more, videos in them, groups that touch two splits, and the size of the largest."""
    sizes, splits = np.zeros(len(groups), np.int32), np.zeros(len(groups), np.int8)
    for split in ORDER:
        present, rows = np.zeros(len(groups), bool), intake.rows(split)
        for start in range(rows.start, rows.stop, BLOCK):
            part = slice(start, min(start + BLOCK, rows.stop))
            members = groups[part][kept[part]]
            np.add.at(sizes, members, 1)
            present[members] = True
        splits += present
    shared = sizes > 1
    return {
        "groups": int(shared.sum()),
        "videos": int(sizes[shared].sum()),
        "groups_across_splits": int((splits > 1).sum()),
        "largest": int(sizes.max(initial=0)),
    }
