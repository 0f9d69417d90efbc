"""DVC is killed while it hashes and caches outputs: pytest -m "medium or slow" tests/test_kill_dvc.py

.venv/bin/python -m pytest -m "medium or slow" tests/test_kill_dvc.py

The stage has ended by then, so nothing of ours is at work; what must hold is that DVC starts over without harm.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import Project, SmokeRun
from kill import Bytes, Stage, content, left_behind, remove, stages_of

OVERRIDE = "text.max_tokens=16"  # as few as the smoke profile can have: other token stores beside the same tokenizer

BEFORE = ["ingest", "split"]  # up to date, and in the run-cache: when dvc.lock has lost them they need not run


@dataclass(frozen=True)
class Case:
    project: Project  # in which the stage has to run again; not to be changed
    stage: Stage
    whole: Bytes
    lock: str
    seconds: float  # from the stage's end to DVC's


@pytest.fixture(scope="module")
def case(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Case:
    project = smoke_run.project.copy(tmp_path_factory.mktemp("hashing") / "project")
    project.profile("smoke", OVERRIDE)
    stage = stages_of(project)["tokenize"]
    undisturbed = project.copy(tmp_path_factory.mktemp("undisturbed") / "project")
    seconds = repro(undisturbed, stage, None)
    whole = content(undisturbed, stage)
    assert whole != content(project, stage)
    return Case(project, stage, whole, undisturbed.lock, seconds)


def repro(project: Project, stage: Stage, kill_after: float | None) -> float | None:
    """`dvc repro` of the stage, killed so many seconds after the stage has ended; seconds that DVC went on after it,
    None if it was killed."""
    with subprocess.Popen(
        ["dvc", "repro", "--single-item", stage.name],
        cwd=project.path,
        env=project.environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as dvc:
        wait_for_stage(dvc, stage)
        ended = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            dvc.wait(kill_after)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(dvc.pid, signal.SIGKILL)
    assert dvc.returncode in (0, -signal.SIGKILL)
    return None if dvc.returncode else time.monotonic() - ended


def wait_for_stage(dvc: subprocess.Popen, stage: Stage) -> None:
    """Until the stage's process has come and gone."""
    parent, seen = psutil.Process(dvc.pid), False
    while dvc.poll() is None:
        running = any(is_stage(child, stage) for child in parent.children(recursive=True))
        if seen and not running:
            return
        seen = seen or running
        time.sleep(0.005)
    raise AssertionError(f"dvc ended with {dvc.returncode} without running {stage.name}")


def is_stage(process: psutil.Process, stage: Stage) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and " ".join(stage.command) in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def torment(case: Case, folder: Path, kills: int) -> None:
    """Each kill falls on a fresh copy, in which DVC has everything still to do."""
    draw = random.Random()
    while kills:
        seconds = draw.uniform(0, case.seconds)
        print(f"killed {seconds:.3f} s after the stage")  # shown when the test fails
        project = case.project.copy(folder / "project")
        if repro(project, case.stage, seconds) is None:
            check(case, project)
            kills -= 1
        shutil.rmtree(folder / "project")


def check(case: Case, project: Project) -> None:
    """As `framefold repro` does it: what is left of dvc.lock is put in order, DVC does the rest."""
    project.run("python", "-c", "from framefold.lockfile import mend_lock; mend_lock()")
    project.dvc("repro", "--single-item", case.stage.name)
    assert content(project, case.stage) == case.whole
    expected = stages_in(case.lock)
    lost = [name for name in BEFORE if name not in stages_in(project.lock)]
    if lost:
        assert project.repro("repro", "--single-item", *lost).ran == []
    found = stages_in(project.lock)
    *whole, _ = found  # the last one may lack its last files: DVC will see that they are missing
    assert all(found[name] == expected[name] for name in (*whole, *BEFORE, case.stage.name))
    assert left_behind(project) == []
    remove(project, case.stage)  # what the cache holds is whole, too
    project.dvc("checkout", "--quiet", case.stage.name)
    cached = {name for name in case.whole if not name.startswith("metrics/")}
    assert content(project, case.stage) == {name: case.whole[name] for name in cached}


def stages_in(lock: str) -> dict:
    return yaml.safe_load(lock)["stages"]


@pytest.mark.medium
def test_dvc_killed_while_hashing_starts_over(case: Case, tmp_path: Path):
    torment(case, tmp_path, 2)


@pytest.mark.slow
def test_dvc_killed_twenty_times_while_hashing_starts_over(case: Case, tmp_path: Path):
    torment(case, tmp_path, 20)
