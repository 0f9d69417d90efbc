"""No label reaches a model that is judged on it: .venv/bin/python -m pytest tests/test_leaks.py

Each rule is shown on data that keeps it and on data with the defect planted.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_project
import yaml
from stores import SIZES, make_project, make_teachers, small_params, table
from tiny_project import run_stage

from framefold.data.folds import HOLDOUT, Folds
from framefold.data.folds import SCHEMA as FOLDS_SCHEMA
from framefold.data.origins import ORIGIN, check_given_labels, check_trained_folds, origin_of, read_origins
from framefold.data.pseudo_labels import (
    MEAN,
    NOBODY,
    TEACHERS,
    Assignment,
    assign_teachers,
    check_assignment,
    open_pseudo_labels,
    origin_of_labels,
    write_labels,
)
from framefold.data.videos import fold_rows, open_labeled, open_videos
from framefold.errors import UserError
from framefold.evaluation.alive import pseudo_labels
from framefold.params.base import load
from framefold.params.labels import LabelParams
from framefold.params.models import StudentParams
from framefold.rounds import Round
from framefold.storage import read_json, write_json, write_parquet
from framefold.training.pool import Pool, open_pool

PSEUDO = Round(None).pseudo
AS_STORED = LabelParams(hard=0, temperature=1, min_confidence=0, balance=0)
N_TEACHERS = 2
TRAINED_FOLDS = {0: [1, 3], 1: [0, 2]}  # of student folds 0..3
TEST_GROUPS = np.array([70])
# Unlabelled videos: alone, like a labelled video of fold 0, 1, 2, 3, like a holdout video, like a test video
POOL_GROUPS = np.array([99, 10, 11, 12, 13, 50, 70])


def labeled_videos() -> Folds:
    group = np.array([10, 10, 11, 12, 12, 13, 50, 51])
    fold = np.array([0, 0, 1, 2, 2, 3, -1, -1], dtype=np.int32)
    return Folds(pa.array([str(row) for row in range(8)]), np.zeros(8, np.int32), group, fold)


def another_split() -> Folds:
    """As many folds of the same videos, but two have changed places."""
    labeled = labeled_videos()
    fold = labeled.fold.copy()
    fold[[2, 5]] = fold[[5, 2]]
    return dataclasses.replace(labeled, fold=fold)


def assignment() -> Assignment:
    return assign_teachers(POOL_GROUPS, labeled_videos(), TEST_GROUPS, N_TEACHERS, [0, 1])


def check(assigned: Assignment, trained_folds: dict[int, list[int]] = TRAINED_FOLDS) -> None:
    check_assignment(assigned, POOL_GROUPS, labeled_videos(), TEST_GROUPS, trained_folds)


def test_a_fold_trains_on_neither_its_own_videos_nor_their_duplicates_nor_the_holdout():
    labeled = labeled_videos()
    training, validation = fold_rows(labeled, labeled.fold == 2)
    assert training.tolist() == [0, 1, 2, 5]
    assert validation.tolist() == [3, 4]


def test_folds_shuffled_so_that_one_sees_its_duplicates_are_caught():
    labeled = labeled_videos()
    shuffled = dataclasses.replace(labeled, fold=np.array([0, 2, 1, 2, 2, 3, -1, -1], dtype=np.int32))
    with pytest.raises(UserError, match="video 0 trains while a duplicate of it validates"):
        fold_rows(shuffled, shuffled.fold == 2)
    with_holdout = dataclasses.replace(labeled, fold=np.array([0, -1, 1, 2, 2, 3, -1, -1], dtype=np.int32))
    with pytest.raises(UserError, match="holdout"):
        fold_rows(with_holdout, with_holdout.fold == 2)


def test_duplicates_are_labelled_by_the_teacher_that_never_saw_them_and_holdout_and_test_by_nobody():
    assigned = assignment()
    assert assigned.teacher.tolist() == [MEAN, 0, 1, 0, 1, NOBODY, NOBODY]
    assert assigned.usable.tolist() == [True] * 5 + [False] * 2
    check(assigned)


def test_a_duplicate_whose_teacher_was_not_trained_has_no_label():
    assigned = assign_teachers(POOL_GROUPS, labeled_videos(), TEST_GROUPS, N_TEACHERS, [1])
    assert assigned.teacher.tolist() == [MEAN, NOBODY, 1, NOBODY, 1, NOBODY, NOBODY]


@pytest.mark.parametrize("wrong", [1, MEAN])
def test_a_soft_label_from_the_wrong_teacher_is_caught(wrong):
    teacher = assignment().teacher
    teacher[1] = wrong
    with pytest.raises(UserError, match="trained on the label of a duplicate"):
        check(dataclasses.replace(assignment(), teacher=teacher))


@pytest.mark.parametrize("row", [5, 6])
def test_use_of_a_duplicate_of_the_holdout_or_the_test_set_is_caught(row):
    usable = assignment().usable
    usable[row] = True
    with pytest.raises(UserError, match="holdout or the test set"):
        check(dataclasses.replace(assignment(), usable=usable))


def test_a_teacher_that_saw_the_holdout_is_caught():
    check_trained_folds(TRAINED_FOLDS, N_TEACHERS, TEACHERS)
    with pytest.raises(UserError, match="models/teacher/1: it was trained on the holdout"):
        check_trained_folds(TRAINED_FOLDS | {1: [-1, 0, 2]}, N_TEACHERS, TEACHERS)


def test_a_teacher_that_saw_its_own_fold_is_caught():
    with pytest.raises(UserError, match="models/teacher/0: it was trained on fold 2"):
        check_trained_folds(TRAINED_FOLDS | {0: [1, 2, 3]}, N_TEACHERS, TEACHERS)


def write_origin(folder: Path, trained_folds: list[int], **changes: Any) -> None:
    """Of one of two models that hold out folds modulo 2."""
    labeled = labeled_videos()
    rows = np.flatnonzero(np.isin(labeled.fold, trained_folds))
    write_json(folder / ORIGIN, origin_of(labeled, rows, 2) | changes)


def test_what_a_teacher_was_trained_on_is_read_from_its_own_folder(tmp_path):
    folders = {teacher: [tmp_path / str(teacher)] for teacher in TRAINED_FOLDS}
    for teacher, folds in TRAINED_FOLDS.items():
        write_origin(tmp_path / str(teacher), folds)
    assert read_origins(folders, labeled_videos(), 2, leaky=False) == TRAINED_FOLDS
    write_origin(tmp_path / "0", [-1, 1, 3])
    assert read_origins(folders, labeled_videos(), 2, leaky=False) == TRAINED_FOLDS | {0: [-1, 1, 3]}
    with pytest.raises(UserError, match="one of 2 folds"):
        read_origins(folders, labeled_videos(), 3, leaky=False)


def test_a_model_of_another_split_is_caught(tmp_path):
    write_origin(tmp_path, [1, 3])
    with pytest.raises(UserError, match="trained on another split"):
        read_origins({0: [tmp_path]}, another_split(), 2, leaky=False)


def test_a_student_of_leaky_labels_is_no_teacher(tmp_path):
    """Whatever folds its finetuning left out; in a run that allows leaks it is one."""
    write_origin(tmp_path, [1], leaky=True)
    with pytest.raises(UserError, match="learned from leaky labels"):
        read_origins({0: [tmp_path]}, labeled_videos(), 2, leaky=False)
    assert read_origins({0: [tmp_path]}, labeled_videos(), 2, leaky=True) == {0: [1]}


def test_of_several_models_of_a_fold_one_that_saw_too_much_is_enough(tmp_path):
    for arch, folds in (("a", [1]), ("b", [1, 0])):
        write_origin(tmp_path / arch, folds)
    trained = read_origins({0: [tmp_path / arch for arch in ("a", "b")]}, labeled_videos(), 2, leaky=False)
    with pytest.raises(UserError, match="rounds/first/swa/0: it was trained on fold 0"):
        check_trained_folds(trained, 2, "models/rounds/first/swa")


def given(teacher: int | None, **changes: Any) -> dict[str, Any]:
    """What a pretraining or the pool's labels say of who labelled."""
    seen = sorted({fold for who, folds in TRAINED_FOLDS.items() if teacher in (None, who) for fold in folds})
    folds = labeled_videos().digest()
    return {"leaky": False, "folds": folds, "teacher": teacher, "trained_folds": seen} | changes


def accept(origin: dict[str, Any], teacher: int | None, fold: int) -> bool:
    return check_given_labels(origin, labeled_videos(), teacher, fold, Path("labels"))


def test_the_pools_labels_say_by_whom_they_are(project):
    one = {"leaky": False, "folds": open_labeled().digest(), "teacher": 1, "trained_folds": [0, 2]}
    assert origin_of_labels(PSEUDO, 1) == one
    assert origin_of_labels(PSEUDO, None) == one | {"teacher": None, "trained_folds": [0, 1, 2]}


def named(teacher: int | None) -> str:
    return "all teachers" if teacher is None else f"teacher {teacher}"


def test_labels_by_another_teacher_are_caught():
    assert accept(given(0), 0, 2) is False
    assert accept(given(None), None, 2) is False
    for learned, asked in ((0, 1), (0, None), (None, 0)):
        told = f"labels: its labels are by {named(learned)}, not by {named(asked)}"
        with pytest.raises(UserError, match=told):
            accept(given(learned), asked, 2)


def test_labels_by_teachers_of_another_split_are_caught():
    with pytest.raises(UserError, match="of another split"):
        check_given_labels(given(0), another_split(), 0, 2, Path("labels"))


@pytest.mark.parametrize(
    ("seen", "told"), [([1, 2, 3], "teacher 0, which saw fold 2"), ([-1, 1, 3], "the holdout was")]
)
def test_labels_of_a_teacher_that_saw_too_much_are_caught(seen, told):
    """Unless they say that they are leaky, which their student then says, too."""
    with pytest.raises(UserError, match=told):
        accept(given(0, trained_folds=seen), 0, 2)
    assert accept(given(0, trained_folds=seen, leaky=True), 0, 2) is True


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Small stores with soft labels of three teachers, student folds as teacher folds."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_pseudo({teacher: [fold for fold in range(3) if fold != teacher] for teacher in range(3)})
    return tmp_path


def write_pseudo(trained_folds: dict[int, list[int]]) -> None:
    """Soft labels one-hot on the number of the teacher that gave them; class 3 for the mean."""
    folder, size = Path("data/pseudo"), SIZES["unlabeled"]
    teacher = np.arange(size, dtype=np.int32) % 5 - 2  # NOBODY, MEAN, 0, 1, 2
    each = np.stack([np.eye(6)[[t]] * np.isin(teacher, [MEAN, t])[:, None] for t in range(3)])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "per_teacher.npy", each.astype(np.float16))
    np.save(folder / "soft.npy", (np.eye(6)[np.where(teacher == MEAN, 3, teacher.clip(0))]).astype(np.float16))
    hard = (np.zeros(size, np.int32), np.ones(size, np.float32))
    usable = np.arange(size) % 20 != 0
    write_labels(folder, open_videos("unlabeled", "small").ids, Assignment(teacher, usable), [hard])
    origins = {"folder": "models/teacher", "leaky": False, "n_folds": 3, "trained_folds": trained_folds}
    write_json(folder / "teachers.json", origins | {"folds": open_labeled().digest()})


def strict_pool(teacher: int) -> Pool:
    return open_pool(load(StudentParams), PSEUDO, teacher, AS_STORED, held_out=10, seed=0)


def test_strict_pretraining_takes_soft_labels_of_the_one_teacher_that_never_saw_the_fold(project):
    pool = strict_pool(1)
    batch = pool.training.batch(np.arange(len(pool.training)))
    labelled = batch["soft"].sum(dim=1) > 0
    assert set(batch["soft"][labelled].argmax(dim=1).tolist()) == {1}
    teacher = open_pseudo_labels(PSEUDO).teacher[batch["row"].numpy()]
    assert np.array_equal(labelled.numpy(), np.isin(teacher, [MEAN, 1]))


def test_pretraining_never_reads_a_video_that_is_not_usable(project):
    pool = strict_pool(1)
    rows = np.concatenate([pool.training.rows, pool.held_out.rows])
    assert len(rows) == SIZES["unlabeled"] * 19 // 20
    assert not np.any(rows % 20 == 0)


def test_strict_pretraining_refuses_a_teacher_that_saw_the_fold_or_the_holdout(project):
    write_pseudo({0: [1, 2], 1: [0, 1, 2], 2: [0, 1]})
    with pytest.raises(UserError, match="trained on fold 1"):
        strict_pool(1)
    write_pseudo({0: [1, 2], 1: [-1, 0, 2], 2: [0, 1]})
    with pytest.raises(UserError, match="trained on the holdout"):
        strict_pool(1)


def test_strict_pretraining_refuses_soft_labels_that_another_teacher_should_have_given(project):
    each = np.load("data/pseudo/per_teacher.npy")
    each[1, 2] = each[1, 1]  # row 2 belongs to teacher 0
    np.save("data/pseudo/per_teacher.npy", each)
    with pytest.raises(UserError, match="row 2: teacher 1 labels it, but must not"):
        strict_pool(1)


def test_folds_of_other_samples_are_refused(project):
    folds = open_labeled()
    ids = pa.array(folds.ids.to_pylist()[::-1])
    write_parquet("data/folds.parquet", table([ids, folds.label, folds.group, folds.fold], FOLDS_SCHEMA))
    with pytest.raises(UserError, match="row 0 is video"):
        open_labeled(open_videos("labeled", "small"))


def test_labels_of_a_video_that_nobody_may_label_are_refused(project):
    soft = np.load("data/pseudo/soft.npy")
    soft[open_pseudo_labels(PSEUDO).teacher == NOBODY] = 0
    np.save("data/pseudo/soft.npy", soft)
    assert len(open_pseudo_labels(PSEUDO).soft(None)) == SIZES["unlabeled"]
    soft[0] = soft[1]  # row 0 duplicates videos whose teacher was not trained
    np.save("data/pseudo/soft.npy", soft)
    with pytest.raises(UserError, match="row 0: somebody labels it, but must not"):
        open_pseudo_labels(PSEUDO).soft(None)


# The stages themselves, with the safeguards on and off


@pytest.fixture
def stages(tmp_path, monkeypatch) -> dict[str, Any]:
    """A project with three teachers, whose stages can be run; returns its params."""
    params = small_params()
    params["data"]["root"], params["teacher"]["training"]["epochs"] = "raw", 1
    make_project(tmp_path, params)
    make_teachers(tmp_path, params)
    monkeypatch.chdir(tmp_path)
    return params


def set_leaky(params: dict[str, Any], leaky: bool) -> None:
    params["pseudo_label"]["leaky"] = leaky
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def refusal(capsys: pytest.CaptureFixture, stage: str, *arguments: str) -> str:
    with pytest.raises(SystemExit):
        run_stage(stage, *arguments)
    return capsys.readouterr().err


def test_a_teacher_whose_r_drop_would_compare_the_same_pass_is_refused(stages, capsys):
    """Not a leak, but what a stage refuses by itself, too: nothing is trained."""
    stages["teacher"]["training"]["r_drop"] = 1.0
    stages["teacher"]["model"]["dropout"] = stages["teacher"]["text"]["sizes"]["dropout"] = 0.0
    set_leaky(stages, False)
    shutil.rmtree("models/teacher/0")
    told = refusal(capsys, "train_teacher", "--fold", "0")
    assert told.startswith("error: params.yaml: teacher.training.r_drop compares two passes, but teacher.model has no")
    assert not Path("models/teacher/0").exists()


def test_no_stage_takes_a_leaky_teacher_or_its_labels_for_an_honest_one(stages, capsys):
    set_leaky(stages, True)
    run_stage("train_teacher", "--fold", "1")
    assert read_json(f"models/teacher/1/{ORIGIN}")["trained_folds"] == [-1, 0, 2]
    trained = read_json("models/teacher/1/metrics.json")["training_videos"]
    assert trained == int((open_labeled().fold % 3 != 1).sum())
    set_leaky(stages, False)
    assert "models/teacher/1: it was trained on the holdout" in refusal(capsys, "pseudo_label")


def test_leaky_labels_cover_everything_and_say_so(stages, capsys):
    set_leaky(stages, True)
    run_stage("pseudo_label")
    labels = pq.read_table(PSEUDO / "labels.parquet").to_pydict()
    assert set(labels["teacher"]) == {MEAN}
    assert all(labels["usable"])
    report = read_json("metrics/pseudo_label.json")
    assert report["leaky"]
    assert report["counts"]["not_usable"] == report["counts"]["by_one_teacher"] == 0
    assert pseudo_labels(report)["no_leaks"]["ok"] is False
    origins = read_json(PSEUDO / "teachers.json")
    write_json(PSEUDO / "teachers.json", origins | {"trained_folds": {"0": [-1, 1, 2]}})
    open_pseudo_labels(PSEUDO)
    write_json(PSEUDO / "teachers.json", origins | {"trained_folds": {"0": [-1, 1, 2]}, "leaky": False})
    with pytest.raises(UserError, match="models/teacher/0: it was trained on the holdout"):
        open_pseudo_labels(PSEUDO)


def test_honest_labels_pass_their_checks_and_are_not_marked(stages):
    run_stage("pseudo_label")
    report = read_json("metrics/pseudo_label.json")
    assert not report["leaky"]
    assert "no_leaks" not in pseudo_labels(report)
    assert report["counts"]["not_usable"] > 0 < report["counts"]["by_one_teacher"]


def test_a_teacher_in_the_place_of_another_is_caught(stages, capsys):
    """It saw the labels of the duplicates that it would be asked for."""
    shutil.copytree("models/teacher/0", "models/teacher/1", dirs_exist_ok=True)
    assert "models/teacher/1: it was trained on fold 1" in refusal(capsys, "pseudo_label")


def test_a_fold_that_sees_the_labels_of_its_duplicates_is_caught(stages, capsys):
    """Half of a duplicate group is moved to another fold."""
    folds = open_labeled()
    fold, group = folds.fold.copy(), folds.group.copy()
    own = np.flatnonzero(fold == 0)[:2]
    group[own] = group[own[0]]
    columns = [folds.ids, folds.label, group, fold]
    write_parquet("data/folds.parquet", table(columns, FOLDS_SCHEMA))
    run_stage("train_teacher", "--fold", "0")  # whole groups on one side: nothing to complain about
    fold[own[0]] = 1
    write_parquet("data/folds.parquet", table(columns, FOLDS_SCHEMA))
    assert "trains while a duplicate of it validates" in refusal(capsys, "train_teacher", "--fold", "0")


@pytest.mark.parametrize("per_fold", [True, False])
def test_a_student_of_a_leaky_pretraining_says_so_when_the_labels_are_honest_again(stages, per_fold):
    """And one of an honest pretraining does not."""
    stages["pretrain"] |= {"per_fold": per_fold, "epochs": {"single_stream": 0, "dual_stream": 0}}
    stages["finetune"] |= {"epochs": 1, "checkpoints": {"keep": 1, "select": "last"}}
    for leaky in (True, False):
        set_leaky(stages, leaky)
        run_stage("pseudo_label")
        run_stage("pretrain", "--arch", "single_stream")
        set_leaky(stages, False)
        run_stage("pseudo_label")
        run_stage("finetune", "--arch", "single_stream", "--fold", "1")
        assert read_json(f"models/finetune/single_stream/1/{ORIGIN}")["leaky"] is leaky


def test_a_pretraining_in_the_place_of_another_is_caught(stages, capsys):
    stages["pretrain"] |= {"per_fold": True, "epochs": {"single_stream": 0, "dual_stream": 0}}
    set_leaky(stages, False)
    run_stage("pseudo_label")
    run_stage("pretrain", "--arch", "single_stream")
    folder = Path("models/pretrain/single_stream")
    shutil.copytree(folder / "0", folder / "1", dirs_exist_ok=True)
    told = refusal(capsys, "finetune", "--arch", "single_stream", "--fold", "1")
    assert "models/pretrain/single_stream/1: its labels are by teacher 0, not by teacher 1" in told
    assert not Path("models/finetune").exists()


def test_students_of_an_earlier_splits_teachers_are_caught(stages, capsys):
    """The folds are split anew, and only finetune follows."""
    stages["pretrain"] |= {"per_fold": True, "epochs": {"single_stream": 0, "dual_stream": 0}}
    set_leaky(stages, False)
    run_stage("pseudo_label")
    run_stage("pretrain", "--arch", "single_stream")
    folds = open_labeled()
    other = np.where(folds.fold == HOLDOUT, HOLDOUT, (folds.fold + 1) % 3).astype(np.int32)
    write_parquet("data/folds.parquet", table([folds.ids, folds.label, folds.group, other], FOLDS_SCHEMA))
    told = refusal(capsys, "finetune", "--arch", "single_stream", "--fold", "1")
    assert "models/pretrain/single_stream/1: its labels are by teachers of another split" in told
    assert not Path("models/finetune").exists()


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Path:
    """A pipeline that has come to its end."""
    root = tiny_project.copy(tmp_path / "project")
    monkeypatch.chdir(root)
    return root


@pytest.mark.parametrize(("seen", "told"), [([-1, 1], "the holdout"), ([0, 1], "fold 0, which it must not have seen")])
def test_a_student_that_saw_what_it_is_judged_on_is_caught(finished, capsys, seen, told):
    origin = Path("models/finetune/single_stream/0") / ORIGIN
    write_json(origin, read_json(origin) | {"trained_folds": seen})
    assert f"models/finetune/single_stream/0: it was trained on {told}" in refusal(
        capsys, "average_weights", "--arch", "single_stream"
    )


def test_a_student_in_the_place_of_another_is_caught(finished, capsys):
    folder = Path("models/finetune/single_stream")
    shutil.copytree(folder / "1", folder / "0", dirs_exist_ok=True)
    assert "single_stream/0: it was trained on fold 0" in refusal(capsys, "average_weights", "--arch", "single_stream")


def test_scores_of_students_of_leaky_labels_stand_where_nobody_looks_for_estimates(finished):
    """One is enough, and whatever the labels are by now."""
    before = read_json("metrics/metrics.json")
    origin = Path("models/swa/dual_stream/1") / ORIGIN
    write_json(origin, read_json(origin) | {"leaky": True})
    run_stage("ensemble")
    assert read_json("metrics/metrics.json") == {"leaky": before}
    assert set(read_json("metrics/comparisons.json")) == {"leaky"}
    assert read_json("metrics/alive.json")["no_leaks"]["ok"] is False
