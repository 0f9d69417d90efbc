"""Students of the less usual kinds under torchrun: .venv/bin/python -m pytest -m medium tests/test_training_ranks.py

Without dropout, in float32, two processes train what one trains, to rounding.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from stores import (
    make_pretrained,
    make_project,
    make_teachers,
    small_params,
    write_origins,
    write_pretraining_origin,
    write_soft_labels,
)

from framefold.storage import read_json, sha256_of
from tests import tiny_project

pytestmark = pytest.mark.medium

ROOT = Path(__file__).parents[1]
FINETUNE = ["finetune", "--arch", "single_stream", "--fold", "0"]
REFIT = ["refit", "--arch", "single_stream"]
Weights = dict[str, torch.Tensor]


def run(root: Path, stage: list[str], world: int) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={world}"]
    own = {"PYTHONPATH": f"{ROOT}:{ROOT}/src", "OMP_NUM_THREADS": "1", "FRAMEFOLD_DEVICE": "cpu"}
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"} | own
    command = [sys.executable, *(launcher if world > 1 else []), "-m", f"stages.{stage[0]}", *stage[1:]]
    result = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr


def without_dropout(params: dict[str, Any]) -> dict[str, Any]:
    params["student"]["text"]["sizes"]["dropout"] = 0.0
    for arch in tiny_project.ARCHS:
        params["models"][arch]["dropout"] = 0.0
    return params


def project(root: Path, **finetune: Any) -> Path:
    """Stores, soft labels and a pretrained student with random weights."""
    params = without_dropout(small_params())
    params["finetune"] |= {"epochs": 2} | finetune
    make_project(root, params)
    write_soft_labels(root)
    write_origins(root)
    make_pretrained(root, params, {"all": 3})
    return root


def in_one_and_in_two(root: Path, stage: list[str], output: Path) -> list[list[Weights]]:
    """The checkpoints of either, epoch by epoch."""
    found = []
    for world in (1, 2):
        shutil.rmtree(root / output, ignore_errors=True)
        run(root, stage, world)
        found.append([load_file(path) for path in sorted((root / output).glob("epoch-*.safetensors"))])
    return found


def distance(one: Weights, two: Weights) -> float:
    assert one.keys() == two.keys()
    return sum(float((one[name].double() - two[name].double()).square().sum()) for name in one) ** 0.5


def check_same(one: list[Weights], two: list[Weights]) -> None:
    """Adam makes full steps of rounding errors where a gradient is nearly zero, so weights are compared by how far the
    last epoch moved them."""
    assert distance(one[-1], two[-1]) < 0.01 * distance(one[0], one[-1])


def test_a_first_phase_on_pseudo_labels(tmp_path: Path):
    pseudo = small_params()["finetune"]["pseudo"] | {"epochs": 1, "batch_size": 16}
    pseudo["labels"]["balance"] = 0.5
    root = project(tmp_path, pseudo=pseudo)
    output = Path("models/finetune/single_stream/0")
    check_same(*in_one_and_in_two(root, FINETUNE, output))
    assert read_json(root / output / "metrics.json")["pseudo"]


def test_a_refit_on_all_labelled_videos(tmp_path: Path):
    root, output = project(tmp_path), Path("models/finetune/single_stream/all")
    check_same(*in_one_and_in_two(root, REFIT, output))
    assert read_json(root / output / "metrics.json")["validation_videos"] == 0


def test_a_student_with_a_vision_tower_of_its_own(tmp_path: Path):
    with contextlib.chdir(tmp_path):
        tiny_project.write_params([0, 1], archs=["single_stream"], precision="fp32")
        params = without_dropout(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8")))
        params["finetune"] |= {"epochs": 2, "vision": {"lr": 1e-3, "min_crop": 0.8}}
        Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        tiny_project.build_stores()
        tiny_project.write_students("single_stream", [0], checkpoints=1)
        pretrained = Path("models/finetune/single_stream/0")
        (pretrained / "epoch-0.safetensors").rename(pretrained / "model.safetensors")
        Path("models/pretrain/single_stream").mkdir(parents=True)
        pretrained.rename("models/pretrain/single_stream/all")
        write_pretraining_origin(Path("models/pretrain/single_stream/all"))
    write_origins(tmp_path)
    one, two = in_one_and_in_two(tmp_path, FINETUNE, Path("models/finetune/single_stream/0"))
    assert any(".tower." in name for name in one[0])
    check_same(one, two)


@pytest.mark.parametrize("source", ["neighbours", "both"])
def test_votes_of_neighbours_give_the_same_bytes(tmp_path: Path, source: str):
    params = small_params()
    params["pseudo_label"]["source"] = source
    make_project(tmp_path, params)
    make_teachers(tmp_path, params)
    found = []
    for world in (1, 2):
        shutil.rmtree(tmp_path / "data/pseudo", ignore_errors=True)
        run(tmp_path, ["pseudo_label"], world)
        found.append({path.name: sha256_of(path) for path in (tmp_path / "data/pseudo").iterdir()})
    assert found[0] == found[1]
    assert "soft.npy" in found[0]
