"""Stages that predict, under torchrun: .venv/bin/python -m pytest -m "medium or slow" tests/test_many_processes.py

Two and three processes give the bytes of one; one that is killed ends them all, and the next start goes on, with
another number of processes. Run as a script, this file is a stage with small blocks that notes what it writes and dies
when told to.
"""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stores import make_project, make_teachers, small_params

from framefold.inference import blocks
from framefold.runtime import rank
from framefold.storage import sha256_of
from tests import tiny_project

ROOT = Path(__file__).parents[1]
SIZES = {"pseudo_label": 8, "average_weights": blocks.BLOCK}  # videos a block
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
AVERAGE = ["average_weights", "--arch", "single_stream"]


def run(root: Path, stage: list[str], world: int, die: tuple[int, int] | None = None) -> subprocess.CompletedProcess:
    """`stage` in `world` processes; `die`: (rank, number of blocks that it writes before it is killed)."""
    launcher = [*LAUNCHER, f"--nproc-per-node={world}"] if world > 1 else []
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT}/src:{ROOT}/tests", "OMP_NUM_THREADS": "1", "FRAMEFOLD_DEVICE": "cpu"}
    arguments = json.dumps({"stage": stage, "die": die})
    shutil.rmtree(root / "noted", ignore_errors=True)
    (root / "noted").mkdir()
    return subprocess.run(
        [sys.executable, *launcher, __file__, arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def written(root: Path) -> dict[int, list[str]]:
    """Rank -> the blocks that it wrote in the last run."""
    return {int(path.name): path.read_text().split() for path in (root / "noted").iterdir()}


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def project(root: Path) -> Path:
    """A pool of 61 videos: eight blocks, the last one of five."""
    params = small_params()
    params["data"]["root"], params["pretrain"]["per_fold"] = "raw", True
    make_project(root, params, sizes={"labeled": 60, "unlabeled": 61, "test": 10})
    make_teachers(root, params)
    return root


def outputs(root: Path) -> dict[str, str]:
    return digests(root / "data/pseudo") | digests(root / "metrics")


def shared(root: Path, world: int) -> list[str]:
    """All blocks of the last run, after checking that every process wrote some and none was written twice."""
    noted = written(root)
    assert sorted(noted) == list(range(world))
    every = [block for own in noted.values() for block in own]
    assert len(set(every)) == len(every)
    return every


@pytest.mark.medium
def test_the_pool_is_labelled_the_same_by_any_number_of_processes(tmp_path):
    """One process, against three of which one is killed and two that go on."""
    root = project(tmp_path)
    alone = run(root, ["pseudo_label"], 1)
    assert alone.returncode == 0, alone.stderr
    whole = outputs(root)
    shutil.rmtree(root / "data/pseudo")

    killed = run(root, ["pseudo_label"], 3, die=(1, 1))
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    assert not (root / "data/pseudo").exists()
    kept = len(list((root / ".scratch/pseudo_label").rglob("block-*.npy")))
    assert 1 <= kept <= 6
    again = run(root, ["pseudo_label"], 2)
    assert again.returncode == 0, again.stderr
    assert len(shared(root, 2)) == 8 - kept  # nothing was done twice
    assert "61/61 videos  processes 2" in again.stdout
    assert outputs(root) == whole
    assert not (root / ".scratch/pseudo_label").exists()


@pytest.mark.medium
def test_students_are_averaged_and_predict_the_same_in_any_number_of_processes(tmp_path):
    """One process, against two of which the main one is killed and three that go on; eight predictions of one block."""
    root = tiny_project.copy(tmp_path / "project")
    target = root / "models/swa/single_stream"
    whole = digests(target)
    shutil.rmtree(target)
    killed = run(root, AVERAGE, 2, die=(0, 1))
    assert killed.returncode != 0
    assert not target.exists()
    kept = len(list((root / ".scratch/average_weights@single_stream").rglob("block-*.npy")))
    assert 1 <= kept <= 5
    again = run(root, AVERAGE, 3)
    assert again.returncode == 0, again.stderr
    assert len(shared(root, 3)) == 8 - kept
    assert digests(target) == whole


@pytest.mark.medium
def test_a_stage_that_starts_itself_several_times_gives_the_same_bytes(tmp_path):
    """FRAMEFOLD_PROCESSES in place of torchrun: the processes meet without a launcher of torch's."""
    root, found = project(tmp_path), []
    for processes in (1, 2):
        shutil.rmtree(root / "data/pseudo", ignore_errors=True)
        own = {"PYTHONPATH": f"{ROOT}:{ROOT}/src", "OMP_NUM_THREADS": "1", "FRAMEFOLD_PROCESSES": str(processes)}
        command = [sys.executable, "-m", "stages.pseudo_label"]
        result = subprocess.run(command, cwd=root, env=os.environ | own, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        assert ("processes 2" in result.stdout) == (processes == 2)
        found.append(outputs(root))
    assert found[0] == found[1]


@pytest.mark.slow
def test_others_wait_for_the_main_process_of_their_own_start(tmp_path):
    """Scratch of other params lies there, whole; the main process comes late. Nothing of the old is used or counted."""
    root = project(tmp_path)
    assert run(root, ["pseudo_label"], 2, die=(0, 2)).returncode != 0
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("temperature: 1.0", "temperature: 3.0", 1))
    assert (root / "params.yaml").read_text() != text
    result = run(root, ["pseudo_label"], 2)
    assert result.returncode == 0, result.stderr
    assert len(shared(root, 2)) == 8
    found = outputs(root)
    shutil.rmtree(root / "data/pseudo")
    assert run(root, ["pseudo_label"], 1).returncode == 0
    assert outputs(root) == found


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_line(tmp_path):
    root = project(tmp_path)
    (root / "models/teacher/1/model.safetensors").write_bytes(b"broken")
    result = run(root, ["pseudo_label"], 2)
    assert result.returncode != 0
    assert "models/teacher/1" in result.stderr
    assert not (root / "data/pseudo").exists()


# the stage -----------------------------------------------------------------------------------------------------------


def main(stage: list[str], die: list[int] | None) -> None:
    blocks.BLOCK = SIZES[stage[0]]
    write, world = blocks.BlockFolder.write, int(os.environ.get("WORLD_SIZE", "1"))
    noted = Path("noted") / str(rank())
    count = 0

    def noting(self: blocks.BlockFolder, number: int, block) -> None:
        nonlocal count
        with noted.open("a") as file:
            file.write(f"{self.folder.name}/{self.folder.parent.name}/{number}\n")
        deadline = time.monotonic() + (60 if die is None else 0)
        while len(list(noted.parent.iterdir())) < world and time.monotonic() < deadline:
            time.sleep(0.01)  # every process gets a block
        if die is not None and rank() == die[0] and count == die[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(5 if die is not None and count else 0)  # long enough for the launcher to end the others
        write(self, number, block)
        count += 1

    blocks.BlockFolder.write = noting
    if rank() == 0:
        time.sleep(1)  # the others come first
    sys.argv = [f"stages/{stage[0]}.py", *stage[1:]]
    runpy.run_module(f"stages.{stage[0]}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
