"""Raw test records for prediction: what is usable of every video that has an id, whatever else is wrong with it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from framefold.data.annotations import Record, iterate_array, parse_record, shown_id
from framefold.data.ids import is_id
from framefold.storage import parquet_writer

TEXTS = ("title", "asr", "ocr")
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", *TEXTS)])
BATCH = 1024  # records written at a time


class Intake(NamedTuple):
    """ids: of all videos in file order; sound: how many of them `ingest` would have taken, which come first on disk."""

    ids: list[str]
    broken: list[str]  # ids of the others
    unusable: list[str]  # records without an id of their own, as far as they can be named


def take_in(annotations: Path, samples: Path, listed: Any, max_text: int) -> Intake:
    """Write the test videos to `samples` (id, title, asr, ocr), sound ones first, as the pipeline has them.

    `listed.find(id)` says whether there are frames for a video (a SplitManifest). Memory: an id a record.
    """
    seen: dict[str, None] = {}
    broken: list[Record] = []
    unusable: list[str] = []

    def sound() -> Iterator[Record]:
        for number, value in enumerate(iterate_array(annotations)):
            video = value.get("id") if isinstance(value, dict) else None
            if not isinstance(video, str) or not is_id(video) or video in seen:
                unusable.append(shown_id(value, number))
                continue
            record, whole = salvage(value, max_text)
            seen[video] = None
            if whole and listed.find(video) is not None:
                yield record
            else:
                broken.append(record)

    write_records(samples, sound(), broken)
    return Intake(list(seen), [record.id for record in broken], unusable)


def salvage(value: dict[str, Any], max_text: int) -> tuple[Record, bool]:
    """The record, and whether it is whole; each text that cannot be read counts as missing."""
    try:
        return parse_record(value, False, max_text), True
    except Exception:  # a hostile value may fail in any way; the rest of the video still counts
        title, asr, ocr = (salvage_text(value, name, max_text) for name in TEXTS)
        return Record(value["id"], title, asr, ocr, None), False


def salvage_text(value: dict[str, Any], name: str, max_text: int) -> str:
    try:
        return str(getattr(parse_record({"id": value["id"], name: value.get(name)}, False, max_text), name))
    except Exception:
        return ""


def write_records(path: Path, sound: Iterator[Record], broken: list[Record]) -> None:
    """`broken` is filled while `sound` is read, so it is written last."""
    with parquet_writer(path, SCHEMA) as writer:
        batch: list[Record] = []
        for record in sound:
            batch.append(record)
            if len(batch) == BATCH:
                writer.write_batch(to_batch(batch))
                batch = []
        writer.write_batch(to_batch([*batch, *broken]))


def to_batch(records: list[Record]) -> pa.RecordBatch:
    columns = [pa.array([record[i] for record in records], pa.string()) for i in range(len(SCHEMA))]
    return pa.record_batch(columns, schema=SCHEMA)
