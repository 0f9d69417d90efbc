"""`data/samples/<split>.parquet`: usable videos of a split, in annotation order. Row i is one video in every store."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from framefold.storage import iterate_parquet, read_parquet

SPLITS = ("labeled", "unlabeled", "test")
FOLDER = Path("data/samples")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),  # normalised, "" when missing, as are asr and ocr
        ("asr", pa.string()),
        ("ocr", pa.string()),  # lines in order of time, each once, joined by a space
        ("category_id", pa.string()),  # null where the split has no labels
        ("label", pa.int32()),  # index into categories.json, -1 where there is none
        ("group", pa.int64()),  # duplicate group, unique over the splits; a video without duplicates has its own
        ("frames", pa.int32()),  # usable members by frames.manifest, 0: a video without frames
    ]
)
REJECTED = Path("data/rejected.parquet")
REJECTED_SCHEMA = pa.schema([(name, pa.string()) for name in ("split", "file", "id", "reason")])
TEXTS = ("title", "asr", "ocr")


def samples_path(split: str) -> Path:
    return FOLDER / f"{split}.parquet"


def read_columns(split: str, columns: list[str]) -> pa.Table:
    """Some columns of a split; raises UserError when ingest has not run. For millions of texts: iterate_samples."""
    return read_parquet(samples_path(split), columns)


def iterate_samples(split: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Record batches of some columns in row order, a few thousand rows in memory."""
    return iterate_parquet(samples_path(split), columns)
