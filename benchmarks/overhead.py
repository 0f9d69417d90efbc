"""What the pipeline itself costs: python -m benchmarks.overhead

Seconds of a `dvc repro` that finds nothing to do, in this project, if it is reproduced; seconds until each stage is
ready to work (Python, and everything it imports). Best of three, by the clock. --rehearse: one stage, once.
"""

import argparse
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import Figures, best_seconds, report
from framefold.errors import command

log = logging.getLogger(__name__)

STAGES = sorted(path.stem for path in (Path(__file__).parents[1] / "stages").glob("*.py"))
REPEATS = 3


def noop_seconds() -> float | None:
    """None without dvc, and where `dvc repro` would have something to do."""
    dvc = shutil.which("dvc")
    if dvc is None or subprocess.run([dvc, "status", "--quiet"], capture_output=True, check=False).returncode:
        log.info("dvc is not here, or the project is not reproduced: no no-op to time")
        return None
    return best_seconds(lambda: run([dvc, "repro"]), time.perf_counter, REPEATS)


def start_seconds(stage: str, repeats: int) -> float:
    """Until `main` of the stage would run."""
    return best_seconds(lambda: run([sys.executable, "-c", f"import stages.{stage}"]), time.perf_counter, repeats)


def run(arguments: list[str]) -> None:
    subprocess.run(arguments, check=True, capture_output=True)


def measure(stages: list[str], repeats: int) -> Figures:
    starts = {f"stage_start_seconds_{stage}": start_seconds(stage, repeats) for stage in stages}
    return {**starts, "stage_start_seconds_slowest": max(starts.values())}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="does the script work?")
    if parser.parse_args().rehearse:
        report({"noop_repro_seconds": None, **measure(["ingest"], 1)})
        return
    report({"noop_repro_seconds": noop_seconds(), **measure(STAGES, REPEATS)})


if __name__ == "__main__":
    main()
