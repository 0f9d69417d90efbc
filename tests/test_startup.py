"""A DAG of 40 stages starts Python 40 times. Run: .venv/bin/python -m pytest -m medium tests/test_startup.py

CPU seconds are measured, not the clock: a busy machine does not fail the test.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[1]
WITH_TORCH = {"adapt_clip", "train_teacher", "pseudo_label", "pretrain", "finetune", "refit", "average_weights"}
SLOW_IMPORTS = ("torch", "torchvision", "open_clip", "timm", "sklearn", "scipy", "pandas", "transformers", "dvc")
STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")


class Start(NamedTuple):
    """Of a fresh Python, in CPU seconds."""

    whole: float  # with its own start and end
    first: float  # importing what comes first
    second: float
    brought: set[str]  # of SLOW_IMPORTS


def start(module: str, first: str = "sys") -> Start:
    """Import `first`, then `module`."""
    code = (
        f"import json, sys; from time import process_time; a = process_time(); import {first}; b = process_time()\n"
        f"import {module}; brought = [name for name in {SLOW_IMPORTS} if name in sys.modules]\n"
        "print(json.dumps([b - a, process_time() - b, brought]))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True
    ).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    alone, own, brought = json.loads(output)
    return Start((after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime), alone, own, set(brought))


def is_ready_in_time(stage: str) -> bool:
    """Within three seconds with torch, or one without; on a slow machine, where torch alone takes longer, within a
    third of what that takes."""
    if stage in WITH_TORCH:
        made = start(f"stages.{stage}", "torch")
        return made.whole < 3 or made.second < made.first / 3
    return start(f"stages.{stage}").whole < 1 or start(f"stages.{stage}").second < start("torch").second / 3


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_ready_within_three_seconds_or_one_without_torch(stage):
    """What else is at work can only add to it, so the best of three counts."""
    assert any(is_ready_in_time(stage) for _ in range(3))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_brings_no_slow_library_but_torch(stage):
    assert start(f"stages.{stage}").brought <= ({"torch"} if stage in WITH_TORCH else set())


def test_a_slow_import_is_noticed():
    """The measure can fail: sklearn is seen, and is not among what a stage may bring."""
    made = start("sklearn.svm")
    assert {"sklearn", "scipy"} <= made.brought
    assert made.second > 0.2
