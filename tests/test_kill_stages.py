"""Any stage killed at any instant: .venv/bin/python -m pytest -m "medium or slow" tests/test_kill_stages.py

Checkpoints are written all the time, so kills fall into them too. A failure prints its seed; FRAMEFOLD_KILL_SEED=N
draws the same instants again.
"""

import dataclasses
import itertools
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import Project, SmokeRun
from kill import Blow, Killer, content, left_behind, restore, stages_of, undisturbed

KINDS = [
    "demo_data",
    "ingest",
    "split",
    "tokenize",
    "adapt_clip",
    "extract_frames",
    "train_teacher",
    "pseudo_label",
    "pretrain",
    "finetune",
    "refit",
    "average_weights",
    "reweight",
    "reference",
    "ensemble",
]
BLOWS = [Blow(number, group) for group in (False, True) for number in (signal.SIGKILL, signal.SIGTERM)]
STARTING = 1 / 3  # of a run goes into imports: too dull for the few kills of the medium tier


@pytest.fixture(scope="module")
def project(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Project:
    copy = smoke_run.project.copy(tmp_path_factory.mktemp("killed") / "project")
    return dataclasses.replace(
        copy, environment=copy.environment | {"FRAMEFOLD_CHECKPOINT_SECONDS": "0", "FRAMEFOLD_WORKERS": "1"}
    )


@pytest.fixture
def killer(request: pytest.FixtureRequest, project: Project, smoke_run: SmokeRun) -> Iterator[Killer]:
    stage = stages_of(smoke_run.project)[request.param]
    seed = int(os.environ.get("FRAMEFOLD_KILL_SEED") or random.randrange(10**6))
    killer = Killer(project, stage, content(smoke_run.project, stage), seed)
    yield killer
    shutil.rmtree(project.path / ".scratch", ignore_errors=True)  # a failure is one test's, not the next ones' too
    restore(project, stage, killer.whole)


def seconds_of(smoke_run: SmokeRun, name: str) -> float:
    """How long a stage took in the smoke run, by tests/recorder."""
    folder = Path(smoke_run.project.environment["RECORD_OPENED"] + ".seconds")
    return max(float(path.read_text(encoding="utf-8")) for path in folder.glob(f"{name}.*"))


def check(killer: Killer) -> None:
    killer.finish()
    assert content(killer.project, killer.stage) == killer.whole
    assert left_behind(killer.project) == []


@pytest.mark.medium
@pytest.mark.parametrize("killer", KINDS, indirect=True)
def test_a_stage_killed_twice_ends_with_the_same_bytes(killer: Killer, smoke_run: SmokeRun):
    """SIGKILL at the stage, then SIGTERM at it and its workers."""
    seconds = seconds_of(smoke_run, killer.stage.name)
    killer.torment(seconds, [Blow(signal.SIGKILL, False), Blow(signal.SIGTERM, True)], spared=STARTING)
    check(killer)


@pytest.mark.slow
@pytest.mark.parametrize("killer", KINDS, indirect=True)
def test_a_stage_killed_twenty_times_ends_with_the_same_bytes(killer: Killer):
    seconds = undisturbed(killer.project, killer.stage)
    assert content(killer.project, killer.stage) == killer.whole
    killer.torment(seconds, list(itertools.islice(itertools.cycle(BLOWS), 20)))
    check(killer)


def test_every_kind_of_stage_is_killed():
    """A new stage must come into the list above."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert [stage for stage in stages if not stage.startswith("earlier_")] == KINDS  # those run the same files
