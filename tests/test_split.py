"""Holdout and folds. Run: .venv/bin/python -m pytest tests/test_split.py"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mini_root import MiniRoot, words

from framefold.data.folds import HOLDOUT, Folds, check_folds, excluded_groups, make_folds, teacher_fold
from framefold.data.videos import fold_rows, open_labeled
from framefold.errors import UserError
from framefold.params.split import SplitParams
from stages import ingest, split

PARAMS = SplitParams(seed=0, n_folds=5, holdout=0.1)


def long_tail(seed: int = 0, classes: int = 30) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Ids, labels, groups: class sizes 1, 1, 2, 3 up to 200; a tenth of the videos in groups, a few of two labels."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(1, np.geomspace(0.6, 200, classes).astype(int))
    label = rng.permutation(np.repeat(np.arange(classes), sizes))
    group = np.arange(len(label))
    for row in rng.permutation(len(label))[: len(label) // 10]:
        like = np.arange(len(label)) if rng.random() < 0.2 else np.flatnonzero(label == label[row])
        group[row] = group[rng.choice(like)]
    return pa.array([str(10**19 + row) for row in range(len(label))]), label, group


@pytest.fixture
def folds() -> Folds:
    return make_folds(*long_tail(), PARAMS)


def test_groups_never_straddle(folds: Folds) -> None:
    """Every duplicate group stands on one side: in one fold, or in the holdout."""
    assert len(np.unique(folds.group)) < len(folds)
    for group in np.unique(folds.group):
        assert len(np.unique(folds.fold[folds.group == group])) == 1


def test_holdout_is_a_fair_share_of_each_class_but_the_small(folds: Folds) -> None:
    """A tenth of every class within one video and its groups; nothing of classes with fewer videos than folds."""
    sizes, held = np.bincount(folds.label), np.bincount(folds.label[folds.holdout], minlength=30)
    assert held[sizes < PARAMS.n_folds].sum() == 0
    assert np.abs(held - PARAMS.holdout * sizes)[sizes >= PARAMS.n_folds].max() <= 1.5
    assert len(folds.holdout) == pytest.approx(0.1 * len(folds), abs=0.01 * len(folds))


def test_folds_are_stratified(folds: Folds) -> None:
    """Folds are of one size within 3 %, and spread each class evenly, up to its groups."""
    counts = np.array([np.bincount(folds.label[folds.validation(fold)], minlength=30) for fold in range(5)])
    totals = counts.sum(axis=1)
    assert np.ptp(totals) <= 0.03 * totals.mean()
    assert (counts.std(axis=0) <= 0.1 * counts.mean(axis=0) + 0.75).all()


def test_every_class_trains_and_validates_where_it_can(folds: Folds) -> None:
    """At least n_folds groups: in every fold's validation. Two groups: missing from no fold's training but its own."""
    pool = folds.fold != HOLDOUT
    for label in range(30):
        rows = pool & (folds.label == label)
        n_groups = len(np.unique(folds.group[rows]))
        present = len(np.unique(folds.fold[rows]))
        assert present >= min(n_groups, PARAMS.n_folds) - (1 if n_groups < 8 else 0)  # mixed groups may crowd one out
        assert n_groups < 2 or present >= 2


def test_same_seed_same_folds_other_seed_others() -> None:
    """The split depends on its input and params alone."""
    first, again = (make_folds(*long_tail(), PARAMS) for _ in range(2))
    other = make_folds(*long_tail(), PARAMS.model_copy(update={"seed": 1}))
    assert np.array_equal(first.fold, again.fold)
    assert not np.array_equal(first.fold, other.fold)


def test_without_a_holdout_everything_is_in_folds() -> None:
    """split.holdout = 0 is legal."""
    folds = make_folds(*long_tail(), PARAMS.model_copy(update={"holdout": 0.0}))
    assert len(folds.holdout) == 0


def test_single_class_and_single_group_work() -> None:
    """One video, or all of them one group: no error, everything in one fold."""
    ids = pa.array(["1", "2", "3"])
    folds = make_folds(ids, np.zeros(3, int), np.zeros(3, int), PARAMS)
    assert len(np.unique(folds.fold)) == 1
    assert folds.fold[0] != HOLDOUT


# Planted defects: the check that every training stage runs must see them.


def shuffled(folds: Folds) -> Folds:
    """Folds that ignore the groups."""
    return replace(folds, fold=np.random.default_rng(0).permutation(folds.fold))


def leaking_holdout(folds: Folds) -> Folds:
    """One duplicate of a holdout video trains."""
    shared = [group for group in np.unique(folds.group[folds.holdout]) if (folds.group == group).sum() > 1]
    fold = folds.fold.copy()
    fold[np.flatnonzero(folds.group == shared[0])[0]] = 0
    return replace(folds, fold=fold)


def greedy_holdout(folds: Folds) -> Folds:
    """The only video of a class in the holdout."""
    fold = folds.fold.copy()
    fold[folds.group == folds.group[folds.label == 0][0]] = HOLDOUT
    return replace(folds, fold=fold)


def stray_fold(folds: Folds) -> Folds:
    fold = folds.fold.copy()
    fold[folds.group == folds.group[0]] = 5
    return replace(folds, fold=fold)


@pytest.mark.parametrize("defect", [shuffled, leaking_holdout, greedy_holdout, stray_fold])
def test_planted_defect_is_caught(folds: Folds, defect) -> None:  # type: ignore[no-untyped-def]
    """Sound folds pass the check; each defect is an error that says to rebuild."""
    check_folds(folds, PARAMS.n_folds)
    with pytest.raises(UserError, match="dvc repro split"):
        check_folds(defect(folds), PARAMS.n_folds)


def test_training_rows_touch_neither_validation_nor_holdout(folds: Folds) -> None:
    """The rows that train a fold share no group with its validation rows or the holdout."""
    rows, validation = fold_rows(folds, folds.fold == 1)
    forbidden = np.concatenate([folds.group[validation], folds.group[folds.holdout]])
    assert len(rows) > 0.5 * len(folds)
    assert not np.isin(folds.group[rows], forbidden).any()


def test_pool_training_leaves_out_what_duplicates_holdout_or_test(folds: Folds) -> None:
    test_groups = folds.group[folds.validation(2)[:7]]  # as if these had duplicates in test
    excluded = excluded_groups(folds, test_groups)
    assert np.isin(np.concatenate([folds.group[folds.holdout], test_groups]), excluded).all()
    assert not np.isin(folds.group[folds.validation(1)], excluded).any()


def test_teacher_never_saw_its_students_folds() -> None:
    """Teacher t validates exactly the student folds f with f % n == t; the holdout is nobody's."""
    assert teacher_fold(np.array([0, 1, 2, 3, 4, HOLDOUT]), 3).tolist() == [0, 1, 2, 0, 1, HOLDOUT]


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    mini = MiniRoot(tmp_path, monkeypatch).fill(labeled=60)
    for copy in range(4):
        mini.add("labeled", title=words(2000 + copy // 2))
    mini.finish()
    ingest.main()
    split.main()
    return mini


def test_split_stage_writes_what_training_reads(done: MiniRoot) -> None:
    """data/folds.parquet has the rows of the samples, and reading it back passes the checks."""
    assert len(open_labeled()) == 64
    check_folds(open_labeled(), 5)
    ids = pq.read_table("data/samples/labeled.parquet").column("id").to_pylist()
    assert pq.read_table("data/folds.parquet").column("id").to_pylist() == ids


def test_split_stage_is_repeatable_to_the_byte(done: MiniRoot) -> None:
    """The same samples give the same file."""
    before = Path("data/folds.parquet").read_bytes()
    split.main()
    assert Path("data/folds.parquet").read_bytes() == before
