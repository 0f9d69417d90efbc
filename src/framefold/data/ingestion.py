"""Annotations and frames.manifest to samples, duplicate groups and rejects: in two passes, in constant memory.

First pass: every annotation file is streamed into a draft on disk, with the shingles of its texts. Then ids are
compared, frames are hashed and duplicates grouped. Second pass: drafts become samples, now that labels and groups are
known.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from framefold.data import manifest as manifests
from framefold.data.categories import Categories, make_categories, read_label_map
from framefold.data.duplicates import group_duplicates
from framefold.data.frame_hashes import hash_all
from framefold.data.intake import ORDER, Intake, iterate_drafts, open_rejects
from framefold.data.manifest import ManifestEntry
from framefold.data.samples import FOLDER, REJECTED, SCHEMA, SPLITS, TEXTS
from framefold.data.shingles import ShingleStore, ShingleWriter
from framefold.errors import UserError
from framefold.params.data import DataParams
from framefold.params.ingest import IngestParams
from framefold.progress import Progress
from framefold.storage import parquet_writer, write_folder_aside

log = logging.getLogger(__name__)

SCRATCH = Path("data/.ingest")


def ingest(data: DataParams, params: IngestParams, workers: int) -> dict[str, Any]:
    """Write data/samples/ and data/rejected.parquet; returns the counts for metrics/ingest.json.

    Raises UserError when a file can't be read at all, a zip changed since the manifest was written, or too much was
    rejected.
    """
    shutil.rmtree(SCRATCH, ignore_errors=True)
    SCRATCH.mkdir(parents=True)
    try:
        intake, kept = take_in(data, params)
        check_rejected(intake, params)
        categories = intake.categories or seen_categories(intake, kept)
        groups = find_groups(intake, kept, workers)
        with write_folder_aside(FOLDER) as folder:
            categories.write(folder / "categories.json")
            missing = {split: write_samples(folder, intake, split, kept, groups, categories) for split in SPLITS}
        return summary(intake, kept, groups, categories) | {"missing": missing}
    finally:
        shutil.rmtree(SCRATCH, ignore_errors=True)


def take_in(data: DataParams, params: IngestParams) -> tuple[Intake, np.ndarray]:
    """First pass; the array says which drafted records are kept: bool [drafted]."""
    categories = read_label_map(Path(data.categories)) if data.categories else None
    with open_rejects(REJECTED) as rejects:
        intake = Intake(Path(data.root), SCRATCH, params, categories, rejects)
        texts = ShingleWriter(SCRATCH)
        for split in ORDER:
            intake.read_split(split, texts)
        texts.close()
        return intake, intake.first_of_id()


def check_rejected(intake: Intake, params: IngestParams) -> None:
    total = intake.records.total()
    reasons = Counter[str]()
    for split, counts in intake.reasons.items():
        reasons.update({f"{count} {reason} ({split}.json)": count for reason, count in counts.items()})
    if reasons.total() > params.max_rejected * total:
        listed = ", ".join(text for text, _ in reasons.most_common(5))
        raise UserError(
            f"ingest: {reasons.total()} of {total} records rejected, ingest.max_rejected allows "
            f"{params.max_rejected:.2%}: {listed}; see {REJECTED}, then correct the data or raise the limit"
        )
    if intake.drafted["labeled"] == 0:
        raise UserError(f"{intake.root}/annotations/labeled.json: no usable labelled video; add some")


def seen_categories(intake: Intake, kept: np.ndarray) -> Categories:
    names: set[str] = set()
    for batch, _ in iterate_drafts(intake, "labeled", kept, ["category_id"]):
        names.update(batch.column("category_id").unique().to_pylist())
    return make_categories(names)


def find_groups(intake: Intake, kept: np.ndarray, workers: int) -> np.ndarray:
    """int32 [drafted]: number of the first row of each row's duplicate group."""
    hashes, hashed = np.zeros((len(kept), 2), np.uint64), np.zeros((len(kept), 2), bool)
    if manifests.read_layout(intake.root) == "zip_frames":
        progress = Progress("hash frames", total=int(kept.sum()), unit="videos")
        rows = np.flatnonzero(kept)
        for found, usable in hash_all(intake.root, kept_entries(intake, kept), len(rows), workers):
            part = rows[progress.count : progress.count + len(found)]
            hashes[part], hashed[part] = found, usable
            progress.add(len(found))
        progress.close()
    texts = ShingleStore(intake.scratch)
    groups = group_duplicates(texts, hashes, hashed, kept, intake.params.duplicates)
    texts.close()
    return groups


def kept_entries(intake: Intake, kept: np.ndarray) -> Iterator[ManifestEntry]:
    for split in ORDER:
        for batch, _ in iterate_drafts(intake, split, kept, ["id", "size", "digest", "frames"]):
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
        for batch, rows in iterate_drafts(intake, split, kept, ["id", *TEXTS, "category_id", "frames"]):
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
        "records": {split: intake.records[split] for split in SPLITS},
        "samples": {split: int(kept[intake.rows(split)].sum()) for split in SPLITS},
        "rejected": {split: dict(sorted(intake.reasons.get(split, {}).items())) for split in SPLITS},
        "categories": {"level1": len(categories.level1), "level2": len(categories.names)},
        "duplicates": count_duplicates(intake, kept, groups),
    }


def count_duplicates(intake: Intake, kept: np.ndarray, groups: np.ndarray) -> dict[str, int]:
    """Groups of two and more, videos in them, groups that touch two splits, and the size of the largest."""
    sizes = np.bincount(groups[kept], minlength=len(groups)).astype(np.int32)
    splits = np.zeros(len(groups), np.int8)
    for split in ORDER:
        rows = intake.rows(split)
        splits[np.unique(groups[rows][kept[rows]])] += 1
    shared = sizes > 1
    return {
        "groups": int(shared.sum()),
        "videos": int(sizes[shared].sum()),
        "groups_across_splits": int((splits > 1).sum()),
        "largest": int(sizes.max(initial=0)),
    }
