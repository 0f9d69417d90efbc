"""One of several processes is killed: .venv/bin/python -m pytest -m medium tests/test_kill_ranks.py

Two processes train together on the CPU. They give the same bytes every time, so a run that was cut short must too.
"""

import dataclasses
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import Project, SmokeRun
from kill import Bytes, Running, Stage, content, left_behind, remove, stages_of, started

pytestmark = pytest.mark.medium

EPOCHS = 15
SAVES = 4  # checkpoints before the kill: one at the end of each epoch
SECONDS = 20.0  # for all to end
TWO = {"FRAMEFOLD_PROCESSES": "2", "FRAMEFOLD_CHECKPOINT_SECONDS": "0"}


@pytest.fixture(scope="module")
def project(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Project:
    copy = smoke_run.project.copy(tmp_path_factory.mktemp("ranks") / "project")
    copy.profile("smoke", f"finetune.epochs={EPOCHS}")
    return dataclasses.replace(copy, environment=copy.environment | TWO)


@pytest.fixture(scope="module")
def stage(smoke_run: SmokeRun) -> Stage:
    return stages_of(smoke_run.project)["finetune"]


@pytest.fixture(scope="module")
def undisturbed(project: Project, stage: Stage) -> Bytes:
    finish(project, stage)
    return content(project, stage)


def finish(project: Project, stage: Stage) -> str:
    with started(project, stage.command) as running:
        running.finish()
        return running.output


def process_of(running: Running, rank: int) -> psutil.Process:
    (found,) = [process for process in running.processes() if process.environ().get("RANK") == str(rank)]
    return found


def at_work(project: Project, stage: Stage, running: Running) -> None:
    """Wait for some checkpoints."""
    folder, deadline = project.path / ".scratch" / stage.name, time.monotonic() + 120
    while max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*.pt")), default=-1) < SAVES:
        assert running.process.poll() is None, running.output
        assert time.monotonic() < deadline, running.output
        time.sleep(0.01)


def cut_short(project: Project, stage: Stage, command: list[str], kill: Callable[[Running], None]) -> tuple[int, str]:
    """Exit code and output of a run that is killed in the middle; nothing of it is left, and nothing is published."""
    remove(project, stage)
    shutil.rmtree(project.path / ".scratch", ignore_errors=True)
    with started(project, command) as running:
        at_work(project, stage, running)
        kill(running)
        code = running.process.wait(SECONDS)
        running.wait_for_workers()
        output = running.output
    assert content(project, stage) == {}
    return code, output


def check_resumed(project: Project, stage: Stage, undisturbed: Bytes) -> None:
    assert "resumed after step" in finish(project, stage)
    assert content(project, stage) == undisturbed
    assert left_behind(project) == []


@pytest.mark.parametrize("rank", [0, 1])
def test_one_killed_process_ends_all_and_the_next_run_goes_on(
    project: Project, stage: Stage, undisturbed: Bytes, rank: int
):
    """Process 0 owns the scratch folder, process 1 does not."""
    code, output = cut_short(project, stage, stage.command, lambda running: process_of(running, rank).kill())
    assert code == 1
    assert output.splitlines()[-1] == (
        f"error: process {rank} of 2 was ended by SIGKILL, see above; the others were ended, run again: "
        "what was saved is kept"
    )
    assert "Traceback" not in output
    check_resumed(project, stage, undisturbed)


def test_the_same_under_torchrun(project: Project, stage: Stage, undisturbed: Bytes):
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2", "-m"]
    command = [*torchrun, *stage.command[2:]]
    code, output = cut_short(project, stage, command, lambda running: process_of(running, 1).kill())
    assert code == 1
    assert "error: process 0: another process of this run has ended; run again" in output
    check_resumed(project, stage, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_at_all_processes_or_at_what_started_them(
    project: Project, stage: Stage, undisturbed: Bytes, number: signal.Signals, group: bool
):
    def kill(running: Running) -> None:
        os.killpg(running.process.pid, number) if group else running.process.send_signal(number)

    code, _ = cut_short(project, stage, stage.command, kill)
    assert code == (-number if number == signal.SIGKILL else 128 + number)
    check_resumed(project, stage, undisturbed)
