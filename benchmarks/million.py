"""Memory, rates and waiting times at a million unlabelled videos: python -m benchmarks.million

Generates data in a temporary folder (15 GB, set TMPDIR to place it), runs the streaming stages on 100,000 and on
1,000,000 videos and compares their peak memory, then times `framefold manifest` and a `dvc repro` that has nothing to
do. Prints lines to read, and last one JSON object of figures whose names carry the size (`peak_mib_ingest_1m`).

Each stage runs as one process without workers, so its peak is that of the process; mapped files count.
"""

import argparse
import json
import logging
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.million_memory import COMPARING, DATA, LABELED, PER_RECORD, TEST, Run, run_stages
from benchmarks.million_root import commit_everything, noop_repro, refresh_manifest, replace_root
from framefold.errors import command


def size_name(records: int) -> str:
    """1m, 100k, 2k, 250: what figures of that many records are called."""
    for unit, letter in ((10**6, "m"), (10**3, "k")):
        if records % unit == 0:
            return f"{records // unit}{letter}"
    return str(records)


def compare(small: Run, large: Run) -> dict[str, float]:
    """Peaks by stage in MiB; their ratio, less the bytes that comparing ids may cost; the largest of these."""
    names = size_name(large.records), size_name(small.records)
    figures: dict[str, float] = {}
    ratios = {}
    for stage, measured in large.stages.items():
        allowed = PER_RECORD * large.records if stage in COMPARING else 0
        ratios[stage] = (measured.peak - allowed) / small.stages[stage].peak
        for name, run in zip(names, (large, small), strict=True):
            figures[f"peak_mib_{stage}_{name}"] = round(run.stages[stage].peak / 2**20, 1)
        figures[f"peak_ratio_{stage}_{names[0]}_over_{names[1]}"] = round(ratios[stage], 4)
    return figures | {f"peak_rss_ratio_{names[0]}_over_{names[1]}": round(max(ratios.values()), 4)}


def rates(run: Run) -> dict[str, float]:
    """By the clock of the whole process, its start and end included."""
    name, seconds = size_name(run.records), {stage: measured.seconds for stage, measured in run.stages.items()}
    everything = run.records + LABELED + TEST
    counts = {
        "ingest_records": (everything, "ingest"),
        "tokenize_records": (everything, "tokenize"),
        "extract_videos": (run.records, "extract_frames"),
        "extract_frames": (run.frames, "extract_frames"),
        "pseudo_label_videos": (run.records, "pseudo_label"),
    }
    return {f"{what}_per_second_{name}": round(n / seconds[stage], 1) for what, (n, stage) in counts.items()}


def large_root(large: Run, folder: Path) -> dict[str, float]:
    """Seconds to write and refresh the manifest, and of a no-op, in the project that `large` has left in `folder`."""
    project, name = large.project, size_name(large.records)
    sizes = {"labeled": LABELED, "unlabeled": large.records, "test": TEST}
    figures = {f"manifest_full_seconds_{name}": replace_root(project, folder / DATA, sizes)}
    commit_everything(project)
    first, median = noop_repro(project)
    figures |= {f"noop_repro_first_seconds_{name}": first, f"noop_repro_seconds_{name}": median}
    refresh, rescan = refresh_manifest(project, folder / DATA, large.records)
    figures |= {f"manifest_refresh_seconds_{name}": refresh, f"manifest_rescan_seconds_{name}": rescan}
    return {key: round(seconds, 2) for key, seconds in figures.items()}


def benchmark(folder: Path, records: int, small: int) -> dict[str, Any]:
    """All figures; `folder` is for use."""
    few = run_stages(folder / "small", small)
    many = run_stages(folder / "large", records)
    return compare(few, many) | rates(few) | rates(many) | large_root(many, folder / "large")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="unlabelled videos")
    parser.add_argument("--small", type=int, default=100_000, help="what their peak memory is compared with")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the folder goes
    with tempfile.TemporaryDirectory(prefix="framefold-million-") as folder:
        figures = benchmark(Path(folder), arguments.records, arguments.small)
    logging.info("peak of the larger over that of the smaller run")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
