"""pretrain.per_fold in the stages: what a fold's student hears of the pool. Run: pytest tests/test_per_fold.py"""

from pathlib import Path

import numpy as np
import pytest
from stores import make_pretrained, make_project, make_teachers, small_params
from tiny_project import run_stage

TEACHERS = range(3)
PSEUDO = Path("data/pseudo")
PRETRAINED, FINETUNED = Path("models/pretrain/single_stream"), Path("models/finetune/single_stream")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of three teachers, by the stage; students that were pretrained once for each, with random weights."""
    params = small_params()
    params["data"]["root"], params["pretrain"]["per_fold"] = "raw", True
    params["pretrain"]["epochs"], params["finetune"]["epochs"] = {"single_stream": 1, "dual_stream": 1}, 1
    params["finetune"]["checkpoints"]["keep"] = params["average_weights"]["last"] = 1
    params["finetune"]["pseudo"]["epochs"] = 1
    make_project(tmp_path, params)
    make_teachers(tmp_path, params)
    make_pretrained(tmp_path, params, {str(teacher): teacher for teacher in TEACHERS})
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    run_stage("pseudo_label")


def relabel(teacher: int) -> None:
    """Other classes in the labels of `teacher` and in the mean; videos without a label stay without."""
    each, mean = np.load(PSEUDO / "per_teacher.npy"), np.load(PSEUDO / "soft.npy")
    each[teacher] = np.roll(each[teacher], 1, axis=1)
    np.save(PSEUDO / "per_teacher.npy", each)
    np.save(PSEUDO / "soft.npy", np.roll(mean, 1, axis=1))


def pretrained() -> list[dict[str, bytes]]:
    """All that the stage leaves of the student of each teacher."""
    run_stage("pretrain", "--arch", "single_stream")
    return [{path.name: path.read_bytes() for path in (PRETRAINED / str(one)).iterdir()} for one in TEACHERS]


def finetuned(fold: int) -> bytes:
    run_stage("finetune", "--arch", "single_stream", "--fold", str(fold))
    return (FINETUNED / str(fold) / "epoch-0.safetensors").read_bytes()


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_teachers_labels_reach_the_pretraining_of_its_own_student_alone(project: None, teacher: int) -> None:
    before = pretrained()
    relabel(teacher)
    after = pretrained()
    assert [one for one in TEACHERS if before[one] != after[one]] == [teacher]


@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_teachers_labels_reach_the_first_phase_of_its_own_fold_alone(project: None, teacher: int) -> None:
    before = finetuned(1)
    relabel(teacher)
    changed = finetuned(1) != before
    assert changed == (teacher == 1)
