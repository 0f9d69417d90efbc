"""No label reaches a model that is judged on it: .venv/bin/python -m pytest tests/test_leaks.py

Each rule is shown on data that keeps it and on data with the defect planted.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from stores import SIZES, make_project, table

from framefold.data.folds import SCHEMA as FOLDS_SCHEMA
from framefold.data.folds import Folds
from framefold.data.pseudo_labels import (
    MEAN,
    NOBODY,
    ORIGIN,
    Assignment,
    assign_teachers,
    check_assignment,
    check_teachers,
    open_pseudo_labels,
    read_origins,
    write_labels,
)
from framefold.data.videos import fold_rows, open_labeled, open_videos
from framefold.errors import UserError
from framefold.params.base import load
from framefold.params.models import StudentParams
from framefold.storage import write_json, write_parquet
from framefold.training.pool import Pool, open_pool

N_TEACHERS = 2
TRAINED_FOLDS = {0: [1, 3], 1: [0, 2]}  # of student folds 0..3
TEST_GROUPS = np.array([70])
# Unlabelled videos: alone, like a labelled video of fold 0, 1, 2, 3, like a holdout video, like a test video
POOL_GROUPS = np.array([99, 10, 11, 12, 13, 50, 70])


def labeled_videos() -> Folds:
    group = np.array([10, 10, 11, 12, 12, 13, 50, 51])
    fold = np.array([0, 0, 1, 2, 2, 3, -1, -1], dtype=np.int32)
    return Folds(pa.array([str(row) for row in range(8)]), np.zeros(8, np.int32), group, fold)


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
    check_teachers(TRAINED_FOLDS, N_TEACHERS)
    with pytest.raises(UserError, match="models/teacher/1: it was trained on the holdout"):
        check_teachers(TRAINED_FOLDS | {1: [-1, 0, 2]}, N_TEACHERS)


def test_a_teacher_that_saw_its_own_fold_is_caught():
    with pytest.raises(UserError, match="models/teacher/0: it was trained on fold 2"):
        check_teachers(TRAINED_FOLDS | {0: [1, 2, 3]}, N_TEACHERS)


def test_what_a_teacher_was_trained_on_is_read_from_its_own_folder(tmp_path):
    for teacher, folds in TRAINED_FOLDS.items():
        write_json(tmp_path / str(teacher) / ORIGIN, {"n_folds": 2, "trained_folds": folds})
    assert read_origins(tmp_path, [0, 1], 2) == TRAINED_FOLDS
    write_json(tmp_path / "0" / ORIGIN, {"n_folds": 2, "trained_folds": [-1, 1, 3]})
    with pytest.raises(UserError, match="holdout"):
        read_origins(tmp_path, [0, 1], 2)
    with pytest.raises(UserError, match="one of 2 teachers"):
        read_origins(tmp_path, [1], 3)


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
    write_json(folder / "teachers.json", {"n_folds": 3, "trained_folds": trained_folds})


def strict_pool(teacher: int) -> Pool:
    return open_pool(load(StudentParams), teacher, held_out=10, seed=0)


def test_strict_pretraining_takes_soft_labels_of_the_one_teacher_that_never_saw_the_fold(project):
    pool = strict_pool(1)
    batch = pool.training.batch(np.arange(len(pool.training)))
    labelled = batch["soft"].sum(dim=1) > 0
    assert set(batch["soft"][labelled].argmax(dim=1).tolist()) == {1}
    teacher = open_pseudo_labels().teacher[batch["row"].numpy()]
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
