"""python -m stages.ingest: annotations and frames.manifest to data/samples/ with duplicate groups, and rejects."""

import logging
import os
import time
from pathlib import Path

from framefold.data.ingestion import ingest
from framefold.data.manifest import NAME, SPLITS
from framefold.errors import command
from framefold.params.base import load
from framefold.params.data import DataParams
from framefold.params.ingest import IngestParams
from framefold.progress import append_rates
from framefold.runtime import load_runtime
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import write_json

AFTERWARDS = {"max_rejected", "duplicates"}  # params that what is kept in scratch does not depend on
log = logging.getLogger(__name__)


@command
def main() -> None:
    started = time.monotonic()
    data, params = load(DataParams), load(IngestParams)
    workers = load_runtime().workers or len(os.sched_getaffinity(0))
    with Scratch("ingest", fingerprint(data, params)) as scratch:
        counts = ingest(data, params, workers, scratch.folder, scratch.guard)
        scratch.guard()
        write_json("metrics/ingest.json", counts)
        scratch.finish()
    log.info("duplicates: %s", ", ".join(f"{name} {value}" for name, value in counts["duplicates"].items()))
    total, seconds = sum(counts["records"].values()), time.monotonic() - started
    log.info("ingest: %d records in %.1f s, %.0f records/s", total, seconds, total / seconds)
    append_rates("ingest", seconds, {"records": total}, {})


def fingerprint(data: DataParams, params: IngestParams) -> dict[str, str]:
    root = Path(data.root)
    inputs = [root / NAME, *(root / "annotations" / f"{split}.json" for split in SPLITS)]
    given = [Path(data.categories)] if data.categories else []
    there = filter(Path.is_file, [*inputs, *given])  # what is missing is named where it is read
    return stage_fingerprint(params.model_dump(mode="json", exclude=AFTERWARDS), there)


if __name__ == "__main__":
    main()
