"""A killed `dvc repro` resumes to the same bytes: .venv/bin/python -m pytest -m medium tests/test_interrupted_dvc.py

All tests share one smoke run (tests/conftest.py). Each scenario works on a copy of it in which a stage has to run
again: finetuning so long that a kill falls between two of its checkpoints, or labelling.
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

SAVES = 12  # checkpoints before the kill: in the third epoch of EPOCHS
EPOCHS = 20
Fresh = Callable[[str], Project]


@dataclasses.dataclass(frozen=True)
class Item:
    """A stage item, and the change of params after which it has to run again."""

    name: str
    output: Path
    override: str
    saves: bool  # checkpoints; labelling has scratch of another kind

    @property
    def scratch(self) -> Path:
        return Path(".scratch") / self.name


FINETUNE = Item("finetune@single_stream-0", Path("models/finetune/single_stream/0"), f"finetune.epochs={EPOCHS}", True)
LABELS = Item("pseudo_label", Path("data/pseudo"), "pseudo_label.temperature=1.5", False)


@pytest.fixture(scope="module")
def fresh(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    """Makes a copy of the smoke run in which the items have to run again, saving after every step."""

    def make(name: str) -> Project:
        project = smoke_run.project.copy(tmp_path_factory.mktemp(name) / "project")
        project.profile("smoke", FINETUNE.override, LABELS.override)
        environment = project.environment | {"FRAMEFOLD_CHECKPOINT_SECONDS": "0"}
        return dataclasses.replace(project, environment=environment)

    return make


def content(project: Project, item: Item) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.path / item.output).iterdir()}


def repro(project: Project, item: Item) -> str:
    run = project.repro("repro", "--single-item", item.name)
    assert run.ran == [item.name]
    return run.output


@pytest.fixture(scope="module")
def undisturbed(fresh: Fresh) -> dict[Item, dict[str, bytes]]:
    project = fresh("undisturbed")
    for item in (FINETUNE, LABELS):
        repro(project, item)
    return {item: content(project, item) for item in (FINETUNE, LABELS)}


# The tools of the scenarios


@contextlib.contextmanager
def repro_started(project: Project, item: Item, log: Path) -> Iterator[subprocess.Popen]:
    """`dvc repro --single-item` in the background. At the end nothing of it is left, its orphans included."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            ["dvc", "repro", "--single-item", item.name],
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


def stage_at_work(project: Project, item: Item, dvc: subprocess.Popen, log: Path) -> psutil.Process:
    """The stage's python, once it has scratch and, if it saves, has saved often enough."""

    def ready() -> bool:
        assert dvc.poll() is None, f"ended too early:\n{log.read_text(encoding='utf-8')[-3000:]}"
        if not item.saves:
            return (project.path / item.scratch / STAMP).exists()
        numbers = [int(path.name.split("-")[1]) for path in (project.path / item.scratch).glob("checkpoint-*.pt")]
        return max(numbers, default=-1) >= SAVES

    wait_for(ready, log)
    return psutil.Process(int((project.path / ".scratch/.locks" / f"{item.name}.lock").read_text(encoding="utf-8")))


def ended(process: psutil.Process) -> bool:
    """Also when nobody has collected its exit status."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# dvc and its stage are killed together


def kill_both(project: Project, item: Item) -> None:
    """SIGKILL at both; the stage's output is not there, its checkpoint is."""
    log = project.path.parent / "killed.txt"
    with repro_started(project, item, log) as dvc:
        stage = stage_at_work(project, item, dvc, log)
        dvc.kill()
        stage.kill()
        dvc.wait()
        wait_for(lambda: ended(stage), log)
    assert not (project.path / item.output).exists()
    assert list((project.path / item.scratch).glob("checkpoint-*.pt"))


def test_a_killed_repro_ends_with_the_same_bytes(fresh: Fresh, undisturbed: dict[Item, dict[str, bytes]]):
    project = fresh("killed")
    kill_both(project, FINETUNE)
    assert "resumed after step" in repro(project, FINETUNE)
    assert content(project, FINETUNE) == undisturbed[FINETUNE]


@pytest.mark.parametrize("damage", ["param", "checkpoint", "stamp"])
def test_what_a_killed_repro_left_is_dropped_when_it_no_longer_fits(fresh: Fresh, damage: str):
    """Changed params, a flipped bit, a torn stamp: each starts over, and says why."""
    project = fresh(f"damaged_{damage}")
    kill_both(project, FINETUNE)
    said = spoil(project, damage)
    output = repro(project, FINETUNE)
    assert said in output
    assert "resumed after step" not in output


def spoil(project: Project, damage: str) -> str:
    """What the next run says of it. The next run is kept short."""
    scratch = project.path / FINETUNE.scratch
    if damage == "param":
        project.profile("smoke", "finetune.epochs=1")
        return f"{FINETUNE.name}: unfinished work dropped, made with other params"
    if damage == "stamp":
        (scratch / STAMP).write_text("{", encoding="utf-8")
        return f"{STAMP}: damaged, so unfinished work is dropped"
    checkpoints = sorted(scratch.glob("checkpoint-*.pt"))
    assert checkpoints
    for checkpoint in checkpoints:  # two, where the kill fell between a save and its clean-up
        damaged = bytearray(checkpoint.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        checkpoint.write_bytes(damaged)
    return f"{checkpoints[-1].name}: damaged checkpoint dropped"


def test_a_checkpoint_without_random_numbers_is_noticed(
    fresh: Fresh, undisturbed: dict[Item, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
):
    """The comparison above can fail: the same, but what is resumed draws its dropout anew."""
    project = fresh("forgetful")
    kill_both(project, FINETUNE)
    monkeypatch.setenv("DVC_ROOT", str(project.path))
    stamp = json.loads((project.path / FINETUNE.scratch / STAMP).read_text(encoding="utf-8"))
    with Scratch(FINETUNE.name, stamp) as scratch:
        state = scratch.load()
        assert state is not None
        scratch.save(state | {"rngs": []})
    assert "resumed after step" in repro(project, FINETUNE)
    found = content(project, FINETUNE)
    assert found.keys() == undisturbed[FINETUNE].keys()
    assert found != undisturbed[FINETUNE]


# dvc is killed alone, and its stage lives on


@dataclasses.dataclass(frozen=True)
class Orphaned:
    """What became of a stage whose dvc was killed, and of the repro that was started at once."""

    item: Item
    pid: int  # of the orphan
    last_words: str
    published: bool  # by the orphan
    second: str  # output of the second repro
    content: dict[str, bytes]
    scratch: list[str]


@pytest.fixture(scope="module", params=[FINETUNE, LABELS], ids=lambda item: item.name)
def orphaned(fresh: Fresh, request: pytest.FixtureRequest) -> Orphaned:
    """Both stages are held in turn, so that the second starts before the first has noticed, and that the first is seen
    to have ended before the second goes on."""
    item, project = request.param, fresh("orphaned")
    logs = [project.path.parent / f"{name}.txt" for name in ("first", "second")]
    with repro_started(project, item, logs[0]) as first:
        orphan = stage_at_work(project, item, first, logs[0])
        orphan.suspend()
        first.kill()
        first.wait()
        with repro_started(project, item, logs[1]) as second:
            wait_for(lambda: "waiting until it ends" in logs[1].read_text(encoding="utf-8"), logs[1])
            held = psutil.Process(second.pid).children(recursive=True)
            for process in held:
                process.suspend()
            orphan.resume()
            wait_for(lambda: ended(orphan), logs[0])
            published = (project.path / item.output).exists()
            for process in held:
                process.resume()
            assert second.wait(300) == 0, logs[1].read_text(encoding="utf-8")[-3000:]
    texts = [log.read_text(encoding="utf-8") for log in logs]
    left = sorted(path.name for path in (project.path / ".scratch").iterdir())
    return Orphaned(item, orphan.pid, texts[0], published, texts[1], content(project, item), left)


def test_an_orphan_stops_by_itself_without_publishing(orphaned: Orphaned):
    assert "that started it has gone; progress is kept" in orphaned.last_words
    assert not orphaned.published


def test_a_second_repro_waits_for_the_orphan_and_names_it(orphaned: Orphaned):
    assert f"{orphaned.item.name}: process {orphaned.pid} is at work on it; waiting until it ends" in orphaned.second


def test_a_second_repro_goes_on_from_the_orphan_to_the_same_bytes(
    orphaned: Orphaned, undisturbed: dict[Item, dict[str, bytes]]
):
    assert ("resumed after step" in orphaned.second) is orphaned.item.saves
    assert orphaned.content == undisturbed[orphaned.item]


def test_an_orphan_leaves_no_scratch(orphaned: Orphaned):
    assert orphaned.scratch == [".locks"]
