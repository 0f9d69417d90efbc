"""A copy of this project in a temporary folder, for benchmarks that run its stages on generated data."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.working_tree import copy_working_tree

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ("dvc.lock", "metrics/")  # not copied: they belong to other data
# Runs `python -m MODULE ...` and leaves the peak of its resident memory, in bytes, in a file
WITH_PEAK = """
import pathlib, runpy, sys
from framefold.progress import peak_memory
target, *sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    pathlib.Path(target).write_text(str(peak_memory()))
"""


class CommandError(Exception):
    """A command failed; the message is what it printed."""


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak: int  # bytes


@dataclass(frozen=True)
class Project:
    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """One process and one thread, so that the peak is that of the stage; the copy's own sources."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "GIT_", "FRAMEFOLD_"))}
        person = {f"GIT_{role}_{key}": "bench" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        own = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(self.path / "src"), str(self.path)]),
            "OMP_NUM_THREADS": "1",
            "FRAMEFOLD_WORKERS": "0",
            "FRAMEFOLD_DEVICE": "cpu",
            "DVC_SITE_CACHE_DIR": str(self.path.parent / f"{self.path.name}.site"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.path.parent / f"{self.path.name}.inductor"),  # made by any optimizer
        }
        return kept | person | own

    def run(self, *command: str) -> str:
        """stdout and stderr of a command in the project's folder; CommandError when it fails."""
        result = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            raise CommandError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-4000:]}")
        return result.stdout

    def measure(self, module: str, *arguments: str, until: Callable[[str], bool] | None = None) -> Measured:
        """Run `python -m MODULE ...`: seconds of the whole process, and its peak memory, mapped files included.

        `until` is asked for each line that the stage prints; once it says so, the stage is told to save and stop.
        """
        target, printed = self.path / ".peak", list[str]()
        start = time.perf_counter()
        command = [sys.executable, "-u", "-c", WITH_PEAK, str(target), module, *arguments]
        with subprocess.Popen(
            command, cwd=self.path, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                printed.append(line)
                if until and until(line):
                    process.terminate()
                    until = None
        if process.returncode not in (0, 128 + signal.SIGTERM):
            raise CommandError(f"{module} ended with {process.returncode}:\n{''.join(printed)[-4000:]}")
        return Measured(time.perf_counter() - start, int(target.read_text()))

    def framefold(self, *arguments: str) -> str:
        return self.run(sys.executable, "-c", "from framefold.cli import main; main()", *arguments)


def new_project(path: Path, overrides: Sequence[str]) -> Project:
    """The working tree as git sees it, without results, at smoke size with `overrides` of its params."""
    copy_working_tree(path, without=RESULTS)
    project = Project(path)
    project.framefold("profile", "smoke", *overrides)
    return project
