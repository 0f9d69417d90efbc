"""Scratch folders: one owner, never resumed on other inputs or from damaged files, never published by an orphan.

pytest tests/test_scratch.py
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from framefold import fingerprint
from framefold.errors import UserError
from framefold.fingerprint import code_fingerprint, path_digest, stage_fingerprint
from framefold.parent import ParentWatch
from framefold.scratch import OrphanedError, Scratch
from framefold.seals import seal_of

STATE = {"step": 3, "weights": torch.arange(4.0), "nested": {"rows": [1, 2]}}
HOLD = """
import sys, time
from pathlib import Path
from framefold.parent import ParentWatch
from framefold.scratch import Scratch
with Scratch("item", {"params": 1}) as scratch:
    (scratch.folder / "mine").touch()
    while not Path("stop").exists():
        if scratch.interrupted():
            Path("noticed").touch()
            scratch.guard()
        time.sleep(0.02)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "DVC_STAGE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def processes() -> Iterator[list[int]]:
    """Pids to end after the test, whatever became of it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def owned(fingerprint: dict, state: dict | None = None) -> dict | None:
    """Enter, save `state` or load, leave: what one killed or resumed process does."""
    with Scratch("item", fingerprint) as scratch:
        return scratch.save(state) if state else scratch.load()


def checkpoint() -> Path:
    (path,) = Path(".scratch/item").glob("checkpoint-*")
    return path


# ---- what is resumed


def test_state_survives_the_process() -> None:
    owned({"params": 1}, STATE)
    owned({"params": 1}, STATE | {"step": 4})
    loaded = owned({"params": 1})
    assert loaded is not None
    assert loaded["step"] == 4
    assert loaded["weights"].equal(STATE["weights"])
    assert loaded["nested"] == STATE["nested"]


def test_other_params_drop_the_state(caplog: pytest.LogCaptureFixture) -> None:
    """Never resumed on other params, inputs or code; the log says which of them changed."""
    owned({"params": 1, "code": "a"}, STATE)
    (Path(".scratch/item") / "shard").touch()
    with caplog.at_level(logging.INFO):
        assert owned({"params": 2, "code": "a"}) is None
    assert "other params" in caplog.text
    assert not (Path(".scratch/item") / "shard").exists()


def test_a_disk_that_fills_up_in_the_middle_of_a_tensor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.save then hides what the file said behind an error of its own."""

    def full(self: object, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("framefold.seals.Digesting.write", full)
    with pytest.raises(UserError, match=r"progress cannot be saved .No space left on device.; free the disk"):
        owned({"params": 1}, STATE)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_damaged_checkpoint_is_dropped_with_a_warning(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that lied costs the progress, not a crash or wrong weights."""
    owned({"params": 1}, STATE)
    content = bytearray(checkpoint().read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flip": bytes(content), "truncate": bytes(content[:-10]), "empty": b""}[damage]
    checkpoint().write_bytes(damaged)
    assert owned({"params": 1}) is None
    assert "damaged checkpoint dropped" in caplog.text
    assert not list(Path(".scratch/item").glob("checkpoint-*"))


def test_save_that_fails_keeps_the_state_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is one line, and the last good state stays."""
    owned({"params": 1}, STATE)

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"progress cannot be saved .*No space left"):
        owned({"params": 1}, STATE | {"step": 9})
    loaded = owned({"params": 1})
    assert loaded is not None
    assert loaded["step"] == 3


def test_a_broken_stamp_drops_the_state_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    owned({"params": 1}, STATE)
    Path(".scratch/item/stamp.json").write_text('{"params": 1', encoding="utf-8")
    assert owned({"params": 1}) is None
    assert "stamp.json: damaged, so unfinished work is dropped" in caplog.text


def damage_sealed(name: str, damage: str) -> None:
    """Seal `weights` or a folder with them, then spoil the content or the seal."""
    with Scratch("item", {}) as scratch, scratch.sealed(name.split("/")[0]):
        path = scratch.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"weights")
    if damage == "seal":
        seal_of(scratch.folder / name.split("/")[0]).write_bytes(b"\xff\xfe")
    elif damage == "flip":
        path.write_bytes(b"weighty")
    else:
        path.unlink()


@pytest.mark.parametrize("damage", ["flip", "missing", "seal"])
@pytest.mark.parametrize("name", ["weights", "folder/weights"])
def test_what_is_damaged_is_dropped_with_a_warning(name: str, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is copied into an output must be what was written. The rest of the stage's work stays."""
    with Scratch("item", {}) as scratch, scratch.sealed("other") as path:
        path.touch()
    damage_sealed(name, damage)
    with Scratch("item", {}) as scratch:
        assert (scratch.has(name.split("/")[0]), scratch.has("other")) == (False, True)
    assert f"{name.split('/')[0]}: damaged, so it is dropped and made again" in caplog.text


@pytest.mark.parametrize("damage", ["flip", "missing", "seal"])
def test_a_checkpoint_behind_a_damaged_file_is_dropped_with_all(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """Resumed, the training would never write that file again."""
    damage_sealed("weights", damage)
    owned({}, STATE)
    with Scratch("item", {}) as scratch:
        assert scratch.load() is None
        assert [path.name for path in scratch.folder.iterdir()] == ["stamp.json"]
    assert "weights: damaged, so it is dropped and made again" in caplog.text


def test_a_checkpoint_behind_whole_files_is_kept() -> None:
    with Scratch("item", {}) as scratch, scratch.sealed("weights") as path:
        path.write_bytes(b"weights")
    owned({}, STATE)
    assert owned({}) is not None
    assert path.exists()


def test_only_what_was_sealed_counts_as_finished() -> None:
    with Scratch("item", {}) as scratch, contextlib.suppress(KeyError):
        with scratch.sealed("weights") as path:
            path.write_bytes(b"whole")
        with scratch.sealed("folder") as path:
            path.mkdir()
            raise KeyError  # killed before it was sealed
    with Scratch("item", {}) as scratch:
        assert (scratch.has("weights"), scratch.has("folder")) == (True, False)


def test_a_file_that_is_being_written_again_is_not_called_damaged() -> None:
    with Scratch("item", {}) as scratch, scratch.sealed("weights") as path:
        path.write_bytes(b"first")
    with Scratch("item", {}) as scratch, contextlib.suppress(KeyError), scratch.sealed("weights") as path:
        path.write_bytes(b"second")
        raise KeyError  # killed before it was sealed
    owned({})
    assert path.read_bytes() == b"second"


def test_finish_leaves_nothing_to_resume() -> None:
    with Scratch("item", {"params": 1}) as scratch:
        scratch.save(STATE)
        scratch.finish()
    assert not Path(".scratch/item").exists()
    assert owned({"params": 1}) is None


# ---- fingerprints


def test_large_input_with_other_content_never_looks_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same size and same edges: the time of modification tells; for small files the content does, whatever the time."""
    monkeypatch.setattr(fingerprint, "WHOLE", 100)
    monkeypatch.setattr(fingerprint, "EDGE", 10)
    path = folder / "shard.npy"
    for size in (50, 200):
        path.write_bytes(b"a" * size)
        os.utime(path, ns=(1, 1))
        before = path_digest(folder)
        path.write_bytes(b"a" * (size // 2) + b"b" + b"a" * (size - size // 2 - 1))
        os.utime(path, ns=(1, 1 if size == 50 else 2))
        assert path_digest(folder) != before


def test_renamed_file_in_a_folder_changes_the_digest(folder: Path) -> None:
    (folder / "a").write_text("1")
    before = path_digest(folder)
    (folder / "a").rename(folder / "b")
    assert path_digest(folder) != before


def test_missing_input_is_one_line() -> None:
    with pytest.raises(UserError, match="nowhere: missing; build it with"):
        stage_fingerprint({}, ["nowhere"])


def test_code_counts_through_imports(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An edit in a module that is only imported by an imported one, inside a function, changes the code's digest."""
    package = folder / "framefold"
    package.mkdir()
    (package / "stage.py").write_text("import os\nfrom framefold.middle import work\n")
    (package / "middle.py").write_text("def work():\n    from framefold import deep\n    return deep.VALUE\n")
    (package / "deep.py").write_text("VALUE = 1\n")
    (package / "other.py").write_text("VALUE = 1\n")
    monkeypatch.setattr(fingerprint, "PACKAGE", package)
    before = code_fingerprint(["framefold.stage"])
    (package / "other.py").write_text("VALUE = 2\n")
    assert code_fingerprint(["framefold.stage"]) == before
    (package / "deep.py").write_text("VALUE = 2\n")
    assert code_fingerprint(["framefold.stage"]) != before


def test_a_stage_that_imports_another_counts_it(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    stages, package = folder / "stages", folder / "framefold"
    for made in (stages, package):
        made.mkdir()
    (stages / "again.py").write_text("from stages.once import main\n")
    (stages / "once.py").write_text("from framefold import deep\n")
    (package / "deep.py").write_text("VALUE = 1\n")
    monkeypatch.setattr(fingerprint, "PACKAGE", package)
    monkeypatch.setattr(fingerprint, "STAGES", stages)
    before = code_fingerprint(["stages.again"])
    (package / "deep.py").write_text("VALUE = 2\n")
    changed = code_fingerprint(["stages.again"])
    (stages / "once.py").write_text("from framefold import deep  # edited\n")
    assert len({before, changed, code_fingerprint(["stages.again"])}) == 3


# ---- one owner


def hold(**environment: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD], env={**os.environ, **environment})
    wait_for(Path(".scratch/item/mine").exists)
    return process


def test_second_start_waits_and_names_the_first(caplog: pytest.LogCaptureFixture) -> None:
    """Two runs of one stage item never work at once, whatever their params; the second says whom it waits for."""
    first = hold()
    second = subprocess.Popen(
        [sys.executable, "-c", "import logging; logging.basicConfig(level=20, format='%(message)s')\n" + HOLD],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert second.stderr is not None
    assert second.stderr.readline() == f"item: process {first.pid} is at work on it; waiting until it ends\n"
    first.kill()  # a dead holder does not block
    first.wait()
    wait_for(lambda: Path(".scratch/.locks/item.lock").read_text() == str(second.pid))
    Path("stop").touch()
    assert second.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_asks_to_stop(number: signal.Signals) -> None:
    """The handler only notes the signal, so that a step ends and is saved; guard() then ends the process."""
    with Scratch("item", {}) as outer:
        with Scratch("inner", {}) as inner:
            os.kill(os.getpid(), number)
            assert inner.interrupted()
        assert outer.interrupted()  # an item within a stage: both stop
        with pytest.raises(SystemExit) as stop:
            outer.guard()
        assert stop.value.code == 128 + number


def test_what_goes_wrong_after_a_signal_is_the_stop_it_asked_for() -> None:
    """Ctrl-C and schedulers signal worker processes too: then the stage misses them before it looks for a signal."""
    with pytest.raises(SystemExit) as stop:
        fail_after_signal(RuntimeError("a worker has gone"))
    assert stop.value.code == 128 + signal.SIGTERM
    with pytest.raises(UserError):
        fail_after_signal(UserError("the disk is full"))


def fail_after_signal(error: Exception) -> None:
    with Scratch("item", {}):
        os.kill(os.getpid(), signal.SIGTERM)
        raise error


# ---- orphans

STARTER = """
import os, subprocess, sys, time
environment = {**os.environ, "DVC_STAGE": "item", "DVC_ROOT": os.getcwd()}
subprocess.Popen(sys.argv[1], shell=True, env=environment)
time.sleep(600)
"""


def start_under_dvc(processes: list[int]) -> subprocess.Popen:
    """A stage as `dvc` starts it: a child of a shell, with DVC's variables in its environment."""
    Path("hold.py").write_text(HOLD)
    shell_line = f"{sys.executable} hold.py; true"  # `; true`: the shell stays in between
    starter = subprocess.Popen([sys.executable, "-c", STARTER, shell_line])
    processes.append(starter.pid)
    wait_for(Path(".scratch/item/mine").exists)
    processes.append(int(Path(".scratch/.locks/item.lock").read_text()))
    return starter


@pytest.mark.parametrize("reaped", [True, False])
def test_orphan_notices(processes: list[int], reaped: bool) -> None:
    """A killed dvc leaves its child: it must see that within seconds, also while dvc is a zombie nobody has reaped."""
    starter = start_under_dvc(processes)
    time.sleep(1.5)
    assert not Path("noticed").exists()
    starter.kill()
    if reaped:
        starter.wait()
    wait_for(Path("noticed").exists, 10)
    starter.wait()


@dataclass
class Ancestor:
    pid: int
    variables: dict[str, str]
    command: list[str]

    def environ(self) -> dict[str, str]:
        if not self.variables:
            raise psutil.AccessDenied
        return self.variables

    def cmdline(self) -> list[str]:
        return self.command


@pytest.mark.parametrize(
    ("command", "gone"), [(["/sbin/init"], True), (["/usr/bin/dvc", "repro"], False), (["python", "-m", "dvc"], False)]
)
def test_orphan_from_the_start(monkeypatch: pytest.MonkeyPatch, command: list[str], gone: bool) -> None:
    """A dvc that was killed while its stage was still starting: then init is the parent, and that is no dvc."""
    monkeypatch.setenv("DVC_ROOT", ".")
    monkeypatch.setenv("DVC_STAGE", "item")
    shell = Ancestor(7, {"DVC_STAGE": "item"}, ["/bin/sh", "-c", "python -m stages.item"])
    monkeypatch.setattr(psutil.Process, "parents", lambda self: [shell, Ancestor(1, {}, command)])
    watch = ParentWatch()
    assert (watch.pid is None) is gone
    assert watch.orphan_from_start is gone


def test_orphan_must_not_publish(processes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """guard() raises once the parent has gone, however recently; started by hand there is no parent to lose."""
    with Scratch("item", {}) as scratch:
        scratch.guard()
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    processes.append(parent.pid)
    with Scratch("item", {}) as scratch:
        scratch._parent.starter = psutil.Process(parent.pid)
        scratch.guard()
        parent.kill()
        wait_for(lambda: psutil.Process(parent.pid).status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(OrphanedError, match=f"pid {parent.pid}.*run `dvc repro` again"):
            scratch.guard()
    parent.wait()


def test_fingerprint_is_json(folder: Path) -> None:
    """The stamp reads back as it was written, so equal runs resume."""
    stamp = stage_fingerprint({"lr": 1e-3, "folds": (0, 1)}, [folder], ["framefold.training.loop"])
    assert json.loads(json.dumps(stamp)) == stamp
    assert sorted(stamp) == ["code", "inputs", "params", "versions"]
