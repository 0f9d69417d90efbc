"""result.csv: no header, `id,category_id`, every test video once, in the order of annotations/test.json."""

import csv
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from framefold.data.annotations import iterate_array
from framefold.data.ids import is_id
from framefold.storage import write_aside

SHOWN = 5  # ids named in a message
log = logging.getLogger(__name__)


def write_submission(path: Path | str, rows: Iterable[tuple[str, str]]) -> None:
    """rows: (id, category id)."""
    with write_aside(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def complete_submission(annotations: Path, predicted: Mapping[str, str], usual: str) -> list[tuple[str, str]]:
    """A line for every id of the annotation file, in its order.

    Videos that `ingest` rejected have no prediction: they get the category `usual`, and are counted in the log.
    """
    records = (value.get("id") for value in iterate_array(annotations) if isinstance(value, dict))
    ids = dict.fromkeys(video for video in records if isinstance(video, str) and is_id(video))
    if lost := [video for video in ids if video not in predicted]:
        some = ", ".join(lost[:SHOWN]) + (", ..." if len(lost) > SHOWN else "")
        log.warning(f"{annotations}: {len(lost)} videos were rejected; submitted as {usual}, the largest class: {some}")
    return [(video, predicted.get(video, usual)) for video in ids]
