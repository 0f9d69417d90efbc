"""Two machines with one cache: .venv/bin/python -m pytest -m medium tests/test_two_clones.py

Each is a clone of its own, as docs/scaling.md tells; here both lie on one machine. They train at the same time.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import Project, Run, SmokeRun, environment_of

pytestmark = pytest.mark.medium

ARCHS = ("single_stream", "dual_stream")
AFTER = {"refit", "average_weights", "reweight", "ensemble"}
FRAMES = "demo_data@demo"  # every clone draws its frames itself: they are in no cache


@dataclass(frozen=True)
class Clones:
    shares: dict[str, Run]  # what the clone of each architecture was told to run, by architecture
    join: Run  # `dvc repro` in the first clone
    follow: Run  # then in the second
    locks: list[str]


def clone(origin: Project, path: Path, cache: Path) -> Project:
    origin.run("git", "clone", "--quiet", str(origin.path), str(path))
    project = Project(path, environment_of(path))
    project.dvc("cache", "dir", "--local", str(cache))
    project.dvc("checkout", "--quiet")
    return project


@pytest.fixture(scope="module")
def clones(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Clones:
    folder = tmp_path_factory.mktemp("machines")
    origin = smoke_run.project.copy(folder / "origin")
    origin.profile("smoke", "finetune.epochs=3")
    origin.commit("longer finetuning")
    cache = origin.path / ".dvc" / "cache"
    machines = {arch: clone(origin, folder / arch, cache) for arch in ARCHS}
    runs = {arch: start_share(machine, arch) for arch, machine in machines.items()}
    outputs = {arch: run.communicate()[0] for arch, run in runs.items()}
    assert [run.returncode for run in runs.values()] == [0, 0], outputs
    first, second = machines.values()
    shares = {arch: machines[arch].report(output) for arch, output in outputs.items()}
    return Clones(shares, first.repro(), second.repro(), [first.lock, second.lock])


def start_share(machine: Project, arch: str) -> subprocess.Popen:
    items = [f"finetune@{arch}-{fold}" for fold in (0, 1)]
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", *items]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=machine.path, env=machine.environment, **pipes)


@pytest.mark.parametrize("arch", ARCHS)
def test_each_clone_trains_its_share_alone(clones: Clones, arch: str):
    assert clones.shares[arch].ran == [f"finetune@{arch}-0", f"finetune@{arch}-1"]


def test_the_join_takes_the_other_share_from_the_cache(clones: Clones):
    assert {"finetune@dual_stream-0", "finetune@dual_stream-1"} <= set(clones.join.cached)
    assert "finetune" not in clones.join.kinds
    assert clones.join.kinds == AFTER | {"demo_data"}


def test_after_the_join_the_other_clone_has_nothing_left_to_run(clones: Clones):
    assert clones.follow.ran == [FRAMES]
    assert {"ensemble", "finetune@single_stream-0"} <= set(clones.follow.cached)


def test_both_clones_end_with_the_same_lock(clones: Clones):
    first, second = map(yaml.safe_load, clones.locks)
    assert first == second
