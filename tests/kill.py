"""Stages that are killed at random instants, for tests: what a user's `kill`, a scheduler or the kernel does to them.

Stages are started without DVC, by their own commands: the bytes that the shared smoke run's DVC has recorded are what
they must end with.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml
from conftest import Project

WAIT = 120.0  # seconds that a stage may take; several of them run within one on a quiet machine
STOPPING = 30.0  # seconds that a stage and its workers may take to end after a signal
MARK = "FRAMEFOLD_TEST_RUN"
BESIDE = {"data/demo/annotations": "data/demo"}  # frames, which DVC does not track, belong to this output
Bytes = dict[str, bytes]  # by path below the project


@dataclass(frozen=True)
class Stage:
    """One stage item as dvc.lock has it."""

    name: str
    command: list[str]
    outputs: list[str]  # files and folders: outs, metrics and plots

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]


def stages_of(project: Project) -> dict[str, Stage]:
    """The first item of every kind of stage."""
    found: dict[str, Stage] = {}
    for name, entry in yaml.safe_load(project.lock)["stages"].items():
        outputs = sorted({BESIDE.get(out["path"], out["path"]) for out in entry["outs"]})
        stage = Stage(name, entry["cmd"].split(), outputs)
        found.setdefault(stage.kind, stage)
    return found


def content(project: Project, stage: Stage) -> Bytes:
    """Every file of the stage's outputs, hidden ones too."""
    paths = [project.path / output for output in stage.outputs]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return {file.relative_to(project.path).as_posix(): file.read_bytes() for file in files}


def remove(project: Project, stage: Stage) -> None:
    """Delete the stage's outputs, as DVC does before it runs a stage, and the shards that would spare it the work."""
    shutil.rmtree(project.path / ".shards", ignore_errors=True)
    for output in stage.outputs:
        path = project.path / output
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def restore(project: Project, stage: Stage, whole: Bytes) -> None:
    remove(project, stage)
    for name, data in whole.items():
        (project.path / name).parent.mkdir(parents=True, exist_ok=True)
        (project.path / name).write_bytes(data)


def half_written(project: Project, stage: Stage, whole: Bytes) -> list[str]:
    """Outputs that are neither missing nor as they should be."""
    found = content(project, stage)

    def part(files: Bytes, output: str) -> Bytes:
        return {name: data for name, data in files.items() if name == output or name.startswith(f"{output}/")}

    return [output for output in stage.outputs if part(found, output) not in ({}, part(whole, output))]


def left_behind(project: Project) -> list[str]:
    """Scratch and files aside that a finished stage should have removed."""
    scratch = project.path / ".scratch"
    kept = [path for path in scratch.iterdir() if path.name != ".locks"] if scratch.is_dir() else []
    beside = [path for folder in ("data", "models", "metrics") for path in (project.path / folder).rglob("*.aside")]
    hidden = (project.path / "data").glob(".*")
    return sorted({path.relative_to(project.path).as_posix() for path in (*kept, *beside, *hidden)})


class Running:
    """A stage's process in a group of its own, and a mark in its environment by which its workers are found, whoever
    their parent is by then."""

    def __init__(self, project: Project, command: list[str], log: Path):
        self.log, self.mark = log, uuid.uuid4().hex
        with log.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                command,
                cwd=project.path,
                env=project.environment | {MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def finish(self) -> None:
        """Wait for a run that nobody disturbs."""
        code = self.process.wait(WAIT)
        assert code == 0, f"{self.process.args} ended with {code}:\n{self.output[-3000:]}"
        self.wait_for_workers()

    def kill(self, number: signal.Signals, *, group: bool) -> bool:
        """Send the signal to the stage, or to its workers too; True unless the stage had finished before."""
        if self.process.poll() is None:  # else its number may be another's by now
            os.killpg(self.process.pid, number) if group else self.process.send_signal(number)
        code = self.process.wait(STOPPING)
        expected = {0, -number, 128 + number}
        assert code in expected, f"{self.process.args} ended with {code} after {number.name}:\n{self.output[-3000:]}"
        self.wait_for_workers()
        return code != 0

    def wait_for_workers(self) -> None:
        deadline = time.monotonic() + STOPPING
        while alive := self.processes():
            assert time.monotonic() < deadline, f"{self.process.args} has left {[p.cmdline() for p in alive]}"
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        """The stage's process and all that it has started, as far as they are at work."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except psutil.Error:  # a zombie, or not ours to read
            return False


@contextlib.contextmanager
def started(project: Project, command: list[str]) -> Iterator[Running]:
    """At the end nothing of it is left, whatever happened."""
    running = Running(project, command, project.path.parent / f"{project.path.name}.log")
    try:
        yield running
    finally:
        for process in running.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        running.process.wait()


def undisturbed(project: Project, stage: Stage) -> float:
    """Seconds of a run from nothing."""
    remove(project, stage)
    began = time.monotonic()
    with started(project, stage.command) as running:
        running.finish()
    return time.monotonic() - began


class Blow(NamedTuple):
    """What hits a stage: a signal, at its process alone or at its workers too, as Ctrl-C and schedulers do."""

    signal: signal.Signals
    group: bool


@dataclass
class Killer:
    """Kills a stage again and again."""

    project: Project
    stage: Stage
    whole: Bytes = field(repr=False)  # its outputs
    seed: int

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def torment(self, seconds: float, blows: list[Blow], spared: float = 0.0) -> None:
        """One blow after the other, at instants of a run of so many seconds; its first part, the share `spared`, is
        left out. What is hit goes on at the next start; one that ends before its blow is followed by one from
        nothing, which tells how long a run takes now if it ends too early as well."""
        remove(self.project, self.stage)
        from_nothing = True
        for blow in blows:
            began = time.monotonic()
            while not self.strike(self.random.uniform(spared, 1) * seconds, blow):
                if from_nothing:
                    seconds = min(seconds, time.monotonic() - began)
                remove(self.project, self.stage)
                from_nothing, began = True, time.monotonic()
            from_nothing = False

    def strike(self, seconds: float, blow: Blow) -> bool:
        print(f"{self.stage.name}, seed {self.seed}: {blow} after {seconds:.3f} s")  # shown when the test fails
        with started(self.project, self.stage.command) as running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(seconds)
            hit = running.kill(blow.signal, group=blow.group)
        torn = half_written(self.project, self.stage, self.whole)
        assert not torn, f"half written: {torn}"
        return hit

    def finish(self) -> str:
        """Let the stage end in peace; what it printed."""
        with started(self.project, self.stage.command) as running:
            running.finish()
            return running.output
