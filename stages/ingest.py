"""python -m stages.ingest: annotations and frames.manifest to data/samples/ with duplicate groups, and rejects."""

import logging
import os
import time

from framefold.data.ingestion import ingest
from framefold.errors import command
from framefold.params.base import load
from framefold.params.data import DataParams
from framefold.params.ingest import IngestParams
from framefold.runtime import load_runtime
from framefold.storage import write_json

log = logging.getLogger(__name__)


@command
def main() -> None:
    started = time.monotonic()
    workers = load_runtime().workers or len(os.sched_getaffinity(0))
    counts = ingest(load(DataParams), load(IngestParams), workers)
    write_json("metrics/ingest.json", counts)
    total, seconds = sum(counts["records"].values()), time.monotonic() - started
    log.info("duplicates: %s", ", ".join(f"{name} {value}" for name, value in counts["duplicates"].items()))
    log.info("ingest: %d records in %.1f s, %.0f records/s", total, seconds, total / seconds)


if __name__ == "__main__":
    main()
