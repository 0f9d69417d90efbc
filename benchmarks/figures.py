"""What every benchmark shares: the convention that its last line on stdout is a JSON object of named figures."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

Figures = dict[str, float | int | None]  # null: cannot be measured here


def report(figures: Figures) -> None:
    """The last line of a benchmark: four significant digits are more than any of these measurements has."""
    print(json.dumps({name: rounded(value) for name, value in figures.items()}), flush=True)


def rounded(value: float | int | None) -> float | int | None:
    if value is None or isinstance(value, int):
        return value
    return float(f"{value:.4g}")


def figures_of(output: str) -> Figures:
    """The last line of a benchmark's output. ValueError: it is no flat object of finite numbers."""
    lines = output.strip().splitlines()
    found = json.loads(lines[-1]) if lines else None
    if not isinstance(found, dict):
        raise ValueError("its last line is no JSON object")
    for name, value in found.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name} is no number: {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is not finite")
    return found


@contextmanager
def scratch_project() -> Iterator[Path]:
    """A temporary folder for all that a benchmark writes, scratch and rate log of the training loop included."""
    folders = tempfile.TemporaryDirectory(prefix="framefold-bench-")
    with folders as folder, patch.dict(os.environ, {"DVC_ROOT": folder}):
        os.environ.pop("DVC_STAGE", None)
        yield Path(folder)


def use_all_cores() -> None:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))


def median(values: list[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def best_seconds(work: Callable[[], object], clock: Callable[[], float], repeats: int) -> float:
    """The fastest of `repeats` calls: what disturbs a machine only makes it slower."""
    seconds = []
    for _ in range(repeats):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds)
