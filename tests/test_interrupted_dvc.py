"""A killed `dvc repro` resumes to the same bytes: .venv/bin/python -m pytest -m medium tests/test_interrupted_dvc.py

All tests share one smoke run (tests/conftest.py). Each scenario works on a copy of it in which finetuning has to run
again, and is so long that a kill falls between two of its checkpoints.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import Project, SmokeRun

from framefold.scratch import STAMP, Scratch

pytestmark = pytest.mark.medium

ITEM = "finetune@single_stream-0"
OUTPUT = Path("models/finetune/single_stream/0")
SCRATCH = Path(".scratch") / ITEM
SAVES = 12  # checkpoints before the kill: in the third epoch of EPOCHS
EPOCHS = 20
Fresh = Callable[[str], Project]


@pytest.fixture(scope="module")
def fresh(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Makes a copy of the smoke run with a longer finetuning, which saves after every step."""

    def make(name: str) -> Project:
        project = smoke_run.project.copy(tmp_path_factory.mktemp(name) / "project")
        project.profile("smoke", f"finetune.epochs={EPOCHS}")
        environment = project.environment | {"FRAMEFOLD_CHECKPOINT_SECONDS": "0"}
        return dataclasses.replace(project, environment=environment)

    return make


def content(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.path / OUTPUT).iterdir()}


@pytest.fixture(scope="module")
def undisturbed(fresh: Fresh) -> dict[str, bytes]:
    project = fresh("undisturbed")
    assert project.repro("repro", ITEM).ran == [ITEM]
    return content(project)


# The tools of the scenarios


@contextlib.contextmanager
def repro_started(project: Project, log: Path) -> Iterator[subprocess.Popen]:
    """`dvc repro ITEM` in the background. At the end nothing of it is left, its orphans included."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            ["dvc", "repro", ITEM],
            cwd=project.path,
            env=project.environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], object], log: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing happened:\n{log.read_text(encoding='utf-8')[-3000:]}"
        time.sleep(0.01)


def stage_at_work(project: Project, dvc: subprocess.Popen, log: Path) -> psutil.Process:
    """The stage's python, once it has saved often enough."""

    def ready() -> bool:
        assert dvc.poll() is None, f"ended too early:\n{log.read_text(encoding='utf-8')[-3000:]}"
        numbers = [int(path.name.split("-")[1]) for path in (project.path / SCRATCH).glob("checkpoint-*.pt")]
        return max(numbers, default=-1) >= SAVES

    wait_for(ready, log)
    return psutil.Process(int((project.path / ".scratch/.locks" / f"{ITEM}.lock").read_text(encoding="utf-8")))


def ended(process: psutil.Process) -> bool:
    """Also when nobody has collected its exit status."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# dvc and its stage are killed together


def kill_both(project: Project) -> None:
    """SIGKILL at both; the stage's output is not there, its checkpoint is."""
    log = project.path.parent / "killed.txt"
    with repro_started(project, log) as dvc:
        stage = stage_at_work(project, dvc, log)
        dvc.kill()
        stage.kill()
        dvc.wait()
        wait_for(lambda: ended(stage), log)
    assert not (project.path / OUTPUT).exists()
    assert list((project.path / SCRATCH).glob("checkpoint-*.pt"))


def test_a_killed_repro_ends_with_the_same_bytes(fresh: Fresh, undisturbed: dict[str, bytes]):
    project = fresh("killed")
    kill_both(project)
    assert "resumed after step" in project.repro("repro", ITEM).output
    assert content(project) == undisturbed


def test_a_checkpoint_without_random_numbers_is_noticed(
    fresh: Fresh, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    """The comparison above can fail: the same, but what is resumed draws its dropout anew."""
    project = fresh("forgetful")
    kill_both(project)
    monkeypatch.setenv("DVC_ROOT", str(project.path))
    with Scratch(ITEM, json.loads((project.path / SCRATCH / STAMP).read_text(encoding="utf-8"))) as scratch:
        state = scratch.load()
        assert state is not None
        scratch.save(state | {"rngs": []})
    assert "resumed after step" in project.repro("repro", ITEM).output
    found = content(project)
    assert found.keys() == undisturbed.keys()
    assert found != undisturbed


# dvc is killed alone, and its stage lives on


@dataclasses.dataclass(frozen=True)
class Orphaned:
    """What became of a stage whose dvc was killed, and of the repro that was started at once."""

    pid: int  # of the orphan
    last_words: str
    published: bool  # by the orphan
    second: str  # output of the second repro
    content: dict[str, bytes]
    scratch: list[str]


@pytest.fixture(scope="module")
def orphaned(fresh: Fresh) -> Orphaned:
    """Both stages are held in turn, so that the second starts before the first has noticed, and that the first is seen
    to have ended before the second goes on."""
    project = fresh("orphaned")
    logs = [project.path.parent / f"{name}.txt" for name in ("first", "second")]
    with repro_started(project, logs[0]) as first:
        orphan = stage_at_work(project, first, logs[0])
        orphan.suspend()
        first.kill()
        first.wait()
        with repro_started(project, logs[1]) as second:
            wait_for(lambda: "waiting until it ends" in logs[1].read_text(encoding="utf-8"), logs[1])
            held = psutil.Process(second.pid).children(recursive=True)
            for process in held:
                process.suspend()
            orphan.resume()
            wait_for(lambda: ended(orphan), logs[0])
            published = (project.path / OUTPUT).exists()
            for process in held:
                process.resume()
            assert second.wait(300) == 0, logs[1].read_text(encoding="utf-8")[-3000:]
    texts = [log.read_text(encoding="utf-8") for log in logs]
    left = sorted(path.name for path in (project.path / ".scratch").iterdir())
    return Orphaned(orphan.pid, texts[0], published, texts[1], content(project), left)


def test_an_orphan_stops_by_itself_without_publishing(orphaned: Orphaned):
    assert "that started it has gone; progress is kept" in orphaned.last_words
    assert not orphaned.published


def test_a_second_repro_waits_for_the_orphan_and_names_it(orphaned: Orphaned):
    assert f"{ITEM}: process {orphaned.pid} is at work on it; waiting until it ends" in orphaned.second


def test_a_second_repro_goes_on_from_the_orphan_to_the_same_bytes(orphaned: Orphaned, undisturbed: dict[str, bytes]):
    assert "resumed after step" in orphaned.second
    assert orphaned.content == undisturbed


def test_an_orphan_leaves_no_scratch(orphaned: Orphaned):
    assert orphaned.scratch == [".locks"]
