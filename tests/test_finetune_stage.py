"""The finetune stage, run as its command: .venv/bin/python -m pytest -m "medium or not medium" -k finetune_stage"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from stores import ROOT, make_pretrained, make_project, small_params, write_origins, write_soft_labels

from framefold.params.finetune import CheckpointParams
from framefold.training.classifiers import kept_epochs

ITEM = "finetune@single_stream-0"
OUTPUT = Path("models/finetune/single_stream/0")
STAGE = ["-m", "stages.finetune", "--arch", "single_stream", "--fold", "0"]
# The stage with a resume that forgets the state of the random numbers
FORGETFUL = """
import runpy, sys
import framefold.training.loop as loop
loop.restore_rng = lambda state: None
sys.argv = ["finetune", "--arch", "single_stream", "--fold", "0"]
runpy.run_module("stages.finetune", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("select", "scores", "kept"),
    [("last", [0.9, 0.1, 0.2], [1, 2]), ("top", [0.9, 0.1, 0.2], [0, 2]), ("top", [0.5, 0.5, 0.5], [1, 2])],
)
def test_kept_checkpoints_are_the_last_or_the_best(select, scores, kept):
    assert kept_epochs(scores, CheckpointParams(keep=2, select=select)) == kept


def project(root: Path, pseudo_epochs: int = 0, **changes: object) -> Path:
    """Stores and a pretrained student with random weights."""
    params = small_params()
    params["finetune"]["pseudo"] |= {"epochs": pseudo_epochs, "batch_size": 16}
    params["finetune"]["pseudo"]["labels"]["balance"] = 0.5
    params["finetune"] |= changes
    make_project(root, params)
    write_origins(root)
    make_pretrained(root, params, {"all": 3})
    return root


def start(root: Path, arguments: list[str]) -> subprocess.Popen:
    """Saves after every step, so that a kill falls between two saves or into one."""
    own = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1", "FRAMEFOLD_CHECKPOINT_SECONDS": "0"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")} | own
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_after(process: subprocess.Popen, root: Path, saves: int, item: str = ITEM) -> None:
    """SIGKILL as soon as checkpoint number `saves` is there."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        numbers = [int(path.name.split("-")[1]) for path in (root / ".scratch" / item).glob("checkpoint-*.pt")]
        if max(numbers, default=-1) >= saves:
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / OUTPUT).iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, bytes]:
    root = project(tmp_path_factory.mktemp("whole"))
    finish(start(root, STAGE))
    assert not (root / ".scratch" / ITEM).exists()
    return content(root)


@pytest.mark.medium
def test_a_killed_finetune_resumes_to_the_same_bytes(tmp_path, uninterrupted):
    root = project(tmp_path)
    for saves in (3, 12):  # in the first epoch, then in a later one
        kill_after(start(root, STAGE), root, saves)
        assert not (root / OUTPUT).exists()
    assert "resumed" in finish(start(root, STAGE))
    assert content(root) == uninterrupted


@pytest.mark.medium
def test_a_resume_that_forgets_the_random_numbers_is_noticed(tmp_path, uninterrupted):
    root = project(tmp_path)
    kill_after(start(root, STAGE), root, 12)
    assert "resumed" in finish(start(root, ["-c", FORGETFUL]))
    found = content(root)
    assert found.keys() == uninterrupted.keys()
    assert found != uninterrupted


@pytest.mark.medium
def test_r_drop_without_dropout_is_refused_by_the_stage_itself(tmp_path):
    """`dvc repro` alone does not look at params.yaml as a whole."""
    root = project(tmp_path, r_drop=1.0)
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params["models"]["single_stream"]["dropout"] = params["student"]["text"]["sizes"]["dropout"] = 0.0
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    process = start(root, STAGE)
    told, _ = process.communicate(timeout=300)
    assert told == (
        "error: params.yaml: finetune.r_drop compares two passes, but models.single_stream has no dropout; "
        "set models.single_stream.dropout, or r_drop to 0\n"
    )
    assert process.returncode == 1
    assert not (root / OUTPUT).exists()


@pytest.mark.medium
@pytest.mark.parametrize("pseudo_epochs", [0, 1])
def test_a_student_of_leaky_labels_says_so(tmp_path, uninterrupted, pseudo_epochs):
    """The pool's labels are leaky here, those of its pretraining were not: it hears them in the first phase, if there
    is one. What keeps it from labelling in an honest round, see test_leaks.py."""
    root = project(tmp_path, pseudo_epochs)
    write_soft_labels(root)
    path = root / "data/pseudo/teachers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"leaky": True}), encoding="utf-8")
    finish(start(root, STAGE))
    assert json.loads(content(root)["origin.json"])["leaky"] is bool(pseudo_epochs)
    assert json.loads(uninterrupted["origin.json"])["leaky"] is False


@pytest.mark.medium
def test_a_student_of_another_size_is_refused_by_name(tmp_path):
    root = project(tmp_path)
    text = (root / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(text.replace("intermediate: 64", "intermediate: 96"), encoding="utf-8")
    process = start(root, STAGE)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "intermediate_size is 64 there and 96 here" in output.splitlines()[-1]


@pytest.mark.medium
def test_a_finetune_killed_in_both_phases_resumes_to_the_same_bytes(tmp_path):
    """Twice in the phase on pseudo-labels, between both, then in the one on true labels, which no longer repeats the
    first. A head that training alone needs is drawn between the phases."""
    roots = [project(tmp_path / name, pseudo_epochs=2, level1=0.5) for name in ("whole", "killed")]
    for root in roots:
        write_soft_labels(root)
    finish(start(roots[0], STAGE))
    for saves, item in ((3, f"{ITEM}-pseudo"), (9, f"{ITEM}-pseudo"), (4, ITEM)):
        kill_after(start(roots[1], STAGE), roots[1], saves, item)
        assert not (roots[1] / OUTPUT).exists()
    output = finish(start(roots[1], STAGE))
    assert "resumed" in output
    assert f"{ITEM}-pseudo" not in output
    assert content(roots[1]) == content(roots[0])
    assert {"pseudo_curves.csv", "origin.json"} <= content(roots[0]).keys()
    assert [path.name for path in (roots[1] / ".scratch").iterdir()] == [".locks"]


@pytest.mark.medium
def test_without_the_first_phase_the_pool_is_not_touched(tmp_path, uninterrupted):
    root = project(tmp_path)
    write_soft_labels(root)
    for path in ("data/pseudo/soft.npy", "data/tokens/unlabeled.arrow"):
        (root / path).write_bytes(b"damaged")
    finish(start(root, STAGE))
    assert content(root) == uninterrupted
