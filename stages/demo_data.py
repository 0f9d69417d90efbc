"""python -m stages.demo_data demo [--workers 2]: write the generated data set to data/<name>, official layout."""

import argparse
import logging
import os
from pathlib import Path

from framefold.data.demo.write import write_demo
from framefold.data.manifest import write_manifest
from framefold.errors import command
from framefold.params.base import load
from framefold.params.demo import DemoParams
from framefold.scratch import Scratch
from framefold.storage import write_folder_aside

log = logging.getLogger(__name__)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["demo"], help="which generated data set; it is written to data/<name>")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes; no byte depends on it"
    )
    args = parser.parse_args()
    params, target = load(DemoParams), Path("data") / args.name
    with Scratch(f"demo_data@{args.name}", {}) as scratch:  # nothing is kept: this is short
        with write_folder_aside(target) as root:
            scores = write_demo(root, params, args.workers, scratch.guard)
            videos = write_manifest(root)
            scratch.guard()
        scratch.finish()
    log.info(
        "data/%s: %d videos; the oracle's official score on test is %.4f", args.name, videos, scores["both"]["score"]
    )


if __name__ == "__main__":
    main()
