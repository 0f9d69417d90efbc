"""The locked holdout and the folds: whole duplicate groups, each class spread evenly.

data/folds.parquet has the rows of data/samples/labeled.parquet: id, label, group, and fold, the one that validates the
row; -1: holdout.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from framefold.data.samples import read_columns
from framefold.errors import UserError
from framefold.params.split import SplitParams
from framefold.storage import fingerprint_of, write_parquet

FILE = Path("data/folds.parquet")
HOLDOUT = -1
REFIT = "all"  # in place of a fold: the student that is trained on every labelled video, the holdout included
SCHEMA = pa.schema([("id", pa.string()), ("label", pa.int32()), ("group", pa.int64()), ("fold", pa.int32())])


@dataclass(frozen=True)
class Folds:
    """The labelled videos in sample order; arrays of one length."""

    ids: pa.Array  # string
    label: np.ndarray  # int32
    group: np.ndarray  # int64
    fold: np.ndarray  # int32, HOLDOUT or 0..n_folds-1

    def __len__(self) -> int:
        return len(self.fold)

    @property
    def holdout(self) -> np.ndarray:
        """Rows of the holdout."""
        return np.flatnonzero(self.fold == HOLDOUT)

    def validation(self, fold: int) -> np.ndarray:
        """Rows that validate a fold."""
        return np.flatnonzero(self.fold == fold)

    @property
    def n_folds(self) -> int:
        return int(self.fold.max()) + 1

    def digest(self) -> str:
        """Of which video stands where."""
        return fingerprint_of({"ids": self.ids.to_pylist(), "fold": self.fold.tolist()})

    def write(self, path: Path = FILE) -> None:
        write_parquet(path, pa.table([self.ids, self.label, self.group, self.fold], schema=SCHEMA))


def check_folds(folds: Folds, n_folds: int) -> None:
    """Raise UserError when a group stands on two sides, too small a class is in the holdout, or a fold is off."""
    problem = ""
    order = np.lexsort((folds.fold, folds.group))
    group, fold = folds.group[order], folds.fold[order]
    straddling = np.unique(group[1:][(np.diff(group) == 0) & (np.diff(fold) != 0)])
    sizes = np.bincount(folds.label) if len(folds) else np.zeros(0, np.int64)
    small = folds.holdout[sizes[folds.label[folds.holdout]] < n_folds]
    if ((folds.fold < HOLDOUT) | (folds.fold >= n_folds)).any():
        problem = f"folds beyond {n_folds - 1}"
    elif len(straddling):
        problem = f"{len(straddling)} duplicate groups stand on two sides, e.g. group {straddling[0]}"
    elif len(small):
        problem = f"the holdout has video {folds.ids[int(small[0])]} of a class with fewer videos than folds"
    if problem:
        raise UserError(f"{FILE}: {problem}; rebuild it with `dvc repro split`")


def excluded_groups(folds: Folds, test_groups: Iterable[int] | np.ndarray) -> np.ndarray:
    """Sorted int64: groups that no training may touch, those of the holdout and of the test videos."""
    test = np.asarray(test_groups if isinstance(test_groups, np.ndarray) else list(test_groups), np.int64)
    return np.union1d(folds.group[folds.holdout], test)


def read_test_groups() -> np.ndarray:
    """int64: group of every test video."""
    return read_columns("test", ["group"]).column("group").to_numpy()


def teacher_fold(fold: np.ndarray | int, n: int) -> np.ndarray:
    """Teacher fold of student folds: teacher t never saw student folds f with f % n == t. The holdout stays HOLDOUT."""
    fold = np.asarray(fold)
    return np.where(fold == HOLDOUT, HOLDOUT, fold % n)


def without_holdout(labeled: Folds) -> Folds:
    """The same with the holdout as one more fold, for models that are to see it: no score of theirs is honest."""
    beyond = labeled.fold.max(initial=0) + 1
    return replace(labeled, fold=np.where(labeled.fold == HOLDOUT, beyond, labeled.fold).astype(np.int32))


# Making them


def make_folds(ids: pa.Array, label: np.ndarray, group: np.ndarray, params: SplitParams) -> Folds:
    """Split labelled videos; the same input gives the same folds.

    The holdout takes `params.holdout` of each class that has at least n_folds videos, in whole groups. The rest is
    dealt out, large groups first, rare classes before frequent ones, each to the fold that has least of its classes.
    """
    rng = np.random.default_rng(params.seed)
    classes = int(label.max()) + 1
    _, rows = np.unique(group, return_inverse=True)
    members = np.split(np.argsort(rows, kind="stable"), np.cumsum(np.bincount(rows))[:-1])
    fold = np.full(len(label), params.n_folds, np.int32)  # beyond the last: not dealt yet
    for chosen in choose_holdout(members, label, classes, params, rng):
        fold[members[chosen]] = HOLDOUT
    deal(fold, [rows for rows in members if fold[rows[0]] != HOLDOUT], label, classes, params.n_folds, rng)
    return Folds(ids, label.astype(np.int32), group.astype(np.int64), fold)


def choose_holdout(
    members: list[np.ndarray], label: np.ndarray, classes: int, params: SplitParams, rng: np.random.Generator
) -> list[int]:
    """Numbers of the groups that fit into the quotas of all their classes, in random order."""
    room = holdout_quotas(np.bincount(label, minlength=classes), params)
    groups_left = np.zeros(classes, np.int64)
    for rows in members:
        groups_left[np.unique(label[rows])] += 1
    chosen = []
    for number in rng.permutation(len(members)):
        held, counts = np.unique(label[members[number]], return_counts=True)
        if (counts <= room[held]).all() and (groups_left[held] > 1).all():  # a class always keeps a group to train on
            room[held] -= counts
            groups_left[held] -= 1
            chosen.append(int(number))
    return chosen


def holdout_quotas(sizes: np.ndarray, params: SplitParams) -> np.ndarray:
    """Videos of each class for the holdout: its share, by largest remainders; none of classes smaller than n_folds."""
    shares = np.where(sizes >= params.n_folds, params.holdout * sizes, 0.0)
    quotas = np.floor(shares).astype(np.int64)
    missing = round(shares.sum()) - quotas.sum()
    quotas[np.argsort(quotas - shares, kind="stable")[:missing]] += 1
    return quotas


def deal(
    fold: np.ndarray, members: list[np.ndarray], label: np.ndarray, classes: int, n_folds: int, rng: np.random.Generator
) -> None:
    """Fill `fold` for the rows of all groups, in place."""
    sizes = np.bincount(label, minlength=classes)
    have = np.zeros((n_folds, classes))
    total = np.zeros(n_folds)
    shuffled = [members[number] for number in rng.permutation(len(members))]
    for rows in sorted(shuffled, key=lambda rows: (-len(rows), sizes[label[rows]].min())):
        held, counts = np.unique(label[rows], return_counts=True)
        crowding = (have[:, held] * (counts / sizes[held])).sum(axis=1)
        best = int(np.lexsort((total, crowding))[0])
        fold[rows] = best
        have[best, held] += counts
        total[best] += len(rows)
