"""Where a study runs: a clone of the project with its own dvc.lock, data and cache, out of the way of the project's."""

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from framefold.errors import UserError
from framefold.lockfile import LOCK
from framefold.params.base import PARAMS_FILE
from framefold.runtime import RUNTIME_FILE
from framefold.storage import write_aside, write_folder_aside

WHAT_RUNS = ("src", "stages", "profiles", "dvc.yaml", "params.yaml")
FRAMEFOLD = (sys.executable, "-c", "from framefold.cli import main; main()")
ELSEWHERE = ("DVC_ROOT", "DVC_STAGE", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
LAST_LINES = 12  # of a failed run that are shown


class RunFailedError(Exception):
    """A run has failed; the message is what it said last."""


@dataclass(frozen=True)
class Commands:
    """What is started in the clone, once params.yaml is written."""

    repro: Sequence[str]
    outcome: Sequence[str]  # with one more argument: the folder that it fills (see `framefold.study.outcome`)
    machine: Sequence[str]  # with one more argument: the file that it writes (see `framefold.study.machine`)
    tidy: Sequence[str]  # drops what the cache holds of other runs than the last one


def commands(jobs: int, gpus: Sequence[str]) -> Commands:
    slots = ["--gpus", ",".join(gpus)] if gpus else ["--jobs", str(jobs)]
    seen = ["env", f"CUDA_VISIBLE_DEVICES={','.join(gpus)}"] if gpus else []
    outcome, machine = ([sys.executable, "-m", f"framefold.study.{name}"] for name in ("outcome", "machine"))
    return Commands([*FRAMEFOLD, "repro", *slots], outcome, [*seen, *machine], ["dvc", "gc", "--workspace", "--force"])


@dataclass(frozen=True)
class Workspace:
    root: Path  # the project
    folder: Path  # the clone
    commands: Commands
    cache: Path | None  # of DVC, to be shared; None: the clone's own

    @contextlib.contextmanager
    def opened(self) -> Iterator["Clone"]:
        """The clone, at the project's commit. UserError: it is in use, or what would run is not committed."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_name(f"{self.folder.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.folder}: another study, or what one has started, is at work there") from None
            commit = self._committed()
            self._check_out(commit)
            yield Clone(self.folder, self.commands, commit, lock, shared_cache=self.cache is not None)

    def _committed(self) -> str:
        changes = git(self.root, "status", "--porcelain", "--", *WHAT_RUNS)
        if changes:
            first = changes.splitlines()[0][3:]
            raise UserError(
                f"study: {first} is not as committed; a study runs what is committed, so commit or stash it"
            )
        return git(self.root, "rev-parse", "HEAD")

    def _check_out(self, commit: str) -> None:
        if not self.folder.is_dir():
            with write_folder_aside(self.folder) as aside:
                git(self.root, "clone", "--quiet", "--no-checkout", str(self.root), str(aside))
        if not (self.folder / ".git").is_dir():
            raise UserError(f"{self.folder}: not a clone that a study has made; give another --workdir")
        git(self.folder, "fetch", "--quiet", str(self.root), commit)
        with unchanged(self.folder / LOCK):  # it tells what is there: else all is linked anew, demo data made anew
            git(self.folder, "checkout", "--quiet", "--force", "--detach", commit)
        if self.cache is not None:
            (self.folder / ".dvc/config.local").write_text(f"[cache]\n    dir = {self.cache.resolve()}\n", "utf-8")
        if (self.root / RUNTIME_FILE).is_file():
            shutil.copyfile(self.root / RUNTIME_FILE, self.folder / RUNTIME_FILE)


@dataclass(frozen=True)
class Clone:
    folder: Path
    commands: Commands
    commit: str
    lock: IO[str]  # passes on to what is started: if the study alone is killed, the next one waits for the rest
    shared_cache: bool

    def run(self, name: str, params: dict[str, Any]) -> Path:
        """Reproduce the pipeline with `params`; returns the outcome's folder. RunFailedError: what was said last."""
        with write_aside(self.folder / PARAMS_FILE) as aside:
            aside.write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True), encoding="utf-8")
        logs = self._logs()
        outcome = logs / f"{name}.outcome"
        shutil.rmtree(outcome, ignore_errors=True)
        outcome.mkdir()
        with (logs / f"{name}.log").open("w", encoding="utf-8") as log:
            self._start(self.commands.repro, log)
            self._start([*self.commands.outcome, str(outcome)], log)
        return outcome

    def machine(self) -> str:
        """The kind that runs are made on. RunFailedError: what was said last."""
        path = self._logs() / "machine"
        with path.with_suffix(".log").open("w", encoding="utf-8") as log:
            self._start([*self.commands.machine, str(path)], log)
        return path.read_text(encoding="utf-8").strip()

    def tidy(self) -> None:
        """Make room when a seed is done with: no run with another one can use what its training has left."""
        if self.shared_cache:
            return
        with (self._logs() / "tidy.log").open("w", encoding="utf-8") as log:
            self._start(self.commands.tidy, log)

    def _logs(self) -> Path:
        logs = self.folder / "logs" / "study"
        logs.mkdir(parents=True, exist_ok=True)
        return logs

    def _start(self, command: Sequence[str], log: IO[str]) -> None:
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[self.lock.fileno()],
        )
        try:
            code = process.wait()
        finally:
            process.terminate()  # a formality, unless this process is told to end: then what runs saves and stops
            process.wait()
        if code:
            lines = Path(log.name).read_text(encoding="utf-8", errors="replace").splitlines()
            raise RunFailedError("\n".join([f"exit status {code}; {log.name} ends:", *lines[-LAST_LINES:]]))

    def _environment(self) -> dict[str, str]:
        """The clone's sources before the installed ones, and this environment's programs before others."""
        return environment() | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.folder / "src"), os.environ.get("PYTHONPATH")])),
        }


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """A file that is there keeps its content, whatever happens to it."""
    content = path.read_bytes() if path.is_file() else None
    yield
    if content is not None:
        with write_aside(path) as aside:
            aside.write_bytes(content)


def environment() -> dict[str, str]:
    """Without what names another repository, as a git hook or a stage of DVC has it."""
    return {key: value for key, value in os.environ.items() if key not in ELSEWHERE}


def git(folder: Path, *arguments: str) -> str:
    """What git answers. UserError: its last line."""
    command = ["git", *arguments]
    result = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stderr.strip() or result.stdout.strip() or "no message").splitlines()[-1]
        raise UserError(f"git {arguments[0]} in {folder}: {said}")
    return result.stdout.strip("\n")
