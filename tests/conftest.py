"""The shared smoke run: the whole pipeline at smoke size, once per session, in a copy of the project with its own git.

`smoke_run` is for reading; a test that changes anything takes `smoke_copy`, which gives it a copy of its own.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.working_tree import copy_working_tree

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: threads would only wait for each other's
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
RECORDER = Path(__file__).parent / "recorder"  # a sitecustomize that notes what each stage opens and imports
NOT_COPIED = ("dvc.lock", "metrics/")  # results: the run makes its own


@dataclass(frozen=True)
class Run:
    """What one `dvc repro` (or `exp run`) did, stage items by name in order."""

    ran: list[str]
    cached: list[str]  # not run: outputs taken from the run-cache
    output: str

    @property
    def kinds(self) -> set[str]:
        """Stages that ran, without their items."""
        return {name.partition("@")[0] for name in self.ran}


@dataclass(frozen=True)
class Project:
    """A copy of the project under git, and the environment that runs its own sources."""

    path: Path
    environment: dict[str, str]

    def run(self, *command: str, timeout: float = 1000) -> str:
        """stdout and stderr of a command that must succeed."""
        result = subprocess.run(
            command,
            cwd=self.path,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == 0, f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-6000:]}"
        return result.stdout

    def dvc(self, *arguments: str) -> str:
        return self.run("dvc", *arguments)

    def repro(self, *command: str) -> Run:
        """`dvc repro`, or another dvc command that reproduces."""
        return self.report(self.dvc(*(command or ("repro",))))

    def report(self, output: str) -> Run:
        """What DVC says that it did."""
        ran = re.findall(r"^Running stage '([^']+)'", output, re.MULTILINE)
        cached = re.findall(r"^Stage '([^']+)' is cached", output, re.MULTILINE)
        return Run(ran, cached, output)

    def framefold(self, *arguments: str) -> str:
        return self.run("python", "-c", "from framefold.cli import main; main()", *arguments)

    def profile(self, name: str, *overrides: str) -> None:
        self.framefold("profile", name, *overrides)

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def copy(self, path: Path) -> "Project":
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path, environment_of(path))

    @property
    def lock(self) -> str:
        return (self.path / "dvc.lock").read_text(encoding="utf-8")


def environment_of(path: Path, hash_seed: int = 0) -> dict[str, str]:
    """The user's own, with the copy's sources before the installed ones and nothing shared with other runs."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "GIT_"))}
    person = {f"GIT_{role}_{key}": "test" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    own = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(path / "src"), str(RECORDER)]),
        "PYTHONHASHSEED": str(hash_seed),
        "OMP_NUM_THREADS": "1",  # sums depend on it in the last bit, and stages run side by side in some tests
        "DVC_SITE_CACHE_DIR": str(path.parent / f"{path.name}.site"),
        "RECORD_OPENED": str(path.parent / f"{path.name}.opened"),
    }
    return environment | person | own


def new_project(path: Path) -> Project:
    """The working tree as git sees it (uncommitted files too), without results, at smoke size, committed."""
    copy_working_tree(path, without=NOT_COPIED)
    project = Project(path, environment_of(path))
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.profile("smoke")
    project.commit("smoke profile")
    return project


@dataclass(frozen=True)
class SmokeRun:
    project: Project
    first: Run  # what the run from scratch did


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    project = new_project(tmp_path_factory.mktemp("smoke") / "project")
    first = project.repro()
    project.commit("results")
    return SmokeRun(project, first)


@pytest.fixture
def smoke_copy(smoke_run: SmokeRun, tmp_path: Path) -> Project:
    return smoke_run.project.copy(tmp_path / "project")
