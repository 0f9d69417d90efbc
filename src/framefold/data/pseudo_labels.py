"""Which teacher may label which unlabelled video, and the store of their soft labels.

A teacher never saw the labels of its own fold. A video that duplicates labelled ones is labelled only by the teacher
whose fold holds them; one that duplicates a holdout or test video is not used at all. Everything else gets the mean of
the teachers. In later rounds the students of a fold, of all architectures, are together the teacher of that fold.

data/pseudo/soft.npy         float16 [N, C], row = unlabelled row; a row of zeros: no trained teacher may label it
data/pseudo/per_teacher.npy  float16 [T, N, C] (pretrain.per_fold only), rows of zeros where that teacher may not label
data/pseudo/labels.parquet   id, label (hard), confidence, teacher (MEAN, NOBODY or its fold), usable
data/pseudo/teachers.json    who the teachers are, of which split, which folds trained them, and whether it is leaky
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from framefold.data.array_files import ArrayFile
from framefold.data.folds import Folds, excluded_groups, teacher_fold
from framefold.data.origins import TrainedFolds, check_trained_folds
from framefold.errors import UserError
from framefold.storage import iterate_parquet, parquet_writer, read_json, read_parquet

TEACHERS = Path("models/teacher")
ORIGINS = "teachers.json"  # {"folder", "leaky", "folds", "n_folds", "trained_folds": {teacher: student folds}}
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int32()),
        ("confidence", pa.float32()),
        ("teacher", pa.int32()),
        ("usable", pa.bool_()),
    ]
)
MEAN, NOBODY = -1, -2
BLOCK = 65536  # rows that are checked at a time

Groups = npt.NDArray[np.int64]
IdsOf = Callable[[npt.NDArray[np.int64]], list[str]]


@dataclass(frozen=True)
class Assignment:
    """By row of the pool."""

    teacher: npt.NDArray[np.int32]  # (N,) MEAN, NOBODY or the only teacher that may label it
    usable: npt.NDArray[np.bool_]  # (N,) False: a duplicate of a holdout or test video


def assign_teachers(
    groups: Groups, labeled: Folds, test_groups: Groups, n_teacher_folds: int, teachers: Sequence[int]
) -> Assignment:
    """Who labels the videos of the pool, by their duplicate groups (N,); `teachers` are those that were trained."""
    usable = ~np.isin(groups, excluded_groups(labeled, test_groups))
    known, first = np.unique(labeled.group, return_index=True)
    place = np.searchsorted(known, groups).clip(max=len(known) - 1)
    duplicates = known[place] == groups
    teacher = np.where(duplicates, teacher_fold(labeled.fold[first[place]], n_teacher_folds), MEAN)
    may_label = usable & np.isin(teacher, [MEAN, *teachers])
    return Assignment(np.where(may_label, teacher, NOBODY).astype(np.int32), usable)


def assign_to_all(groups: Groups) -> Assignment:
    """Every teacher labels every video, whatever it has seen: what the safeguards are compared with."""
    return Assignment(np.full(len(groups), MEAN, np.int32), np.ones(len(groups), dtype=bool))


def check_assignment(
    assigned: Assignment, groups: Groups, labeled: Folds, test_groups: Groups, trained_folds: TrainedFolds
) -> None:
    """Raises UserError when a teacher labels a duplicate of what it was trained on, or a video must not be used at all.

    Judges by what the teachers were trained on, not by how the videos were assigned.
    """
    off_limits = np.isin(groups, np.concatenate([labeled.group[labeled.holdout], test_groups]))
    used = assigned.usable | (assigned.teacher != NOBODY)
    _refuse(used & off_limits, "it duplicates a video of the holdout or the test set, but is used")
    for teacher, folds in trained_folds.items():
        seen = np.isin(groups, labeled.group[np.isin(labeled.fold, list(folds))])
        asked = np.isin(assigned.teacher, [MEAN, teacher])
        _refuse(asked & seen, f"teacher {teacher} labels it, but was trained on the label of a duplicate")


def _refuse(bad: npt.NDArray[np.bool_], reason: str, first_row: int = 0) -> None:
    if np.any(bad):
        row = first_row + int(np.flatnonzero(bad)[0])
        raise UserError(
            f"pseudo_label: unlabelled row {row}: {reason} ({int(bad.sum())} such rows); "
            "rebuild samples and teachers with `dvc repro`"
        )


def write_labels(
    folder: Path, ids: IdsOf, assigned: Assignment, hard: Iterable[tuple[npt.NDArray, npt.NDArray]]
) -> None:
    """labels.parquet; `ids` gives those of rows, `hard` yields label and confidence block by block, in row order."""
    row = 0
    with parquet_writer(folder / "labels.parquet", SCHEMA) as writer:
        for label, confidence in hard:
            rows = slice(row, row + len(label))
            columns = [ids(np.arange(row, row + len(label))), label, confidence]
            columns += [assigned.teacher[rows], assigned.usable[rows]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
            row = rows.stop


@dataclass(frozen=True)
class PseudoLabels:
    """The finished store; soft labels stay on disk."""

    folder: Path
    teacher: npt.NDArray[np.int32]  # (N,)
    usable: npt.NDArray[np.bool_]  # (N,)
    trained_folds: dict[int, list[int]]

    def iterate_ids(self) -> Iterator[pa.Array]:
        """Ids in row order, piece by piece."""
        for batch in iterate_parquet(self.folder / "labels.parquet", ["id"]):
            yield batch.column(0)

    def soft(self, teacher: int | None) -> ArrayFile:
        """(N, C) on disk: the mean of the teachers, or the labels of `teacher` alone, who saw no label of the student
        folds that are its own. Rows of zeros: no label."""
        n = len(self.teacher)
        if teacher is None:
            soft = _open(self.folder / "soft.npy", n, 0, 1)
            self._check(soft, [MEAN, *self.trained_folds], "somebody")
            return soft
        place = sorted(self.trained_folds).index(teacher)
        soft = _open(self.folder / "per_teacher.npy", n, place, len(self.trained_folds))
        self._check(soft, [MEAN, teacher], f"teacher {teacher}")
        return soft

    def _check(self, soft: ArrayFile, allowed: Sequence[int], who: str) -> None:
        """Raises UserError when labels cover a video that only others than the `allowed` may label, or nobody."""
        for start in range(0, len(soft), BLOCK):
            teacher = self.teacher[start : start + BLOCK]
            labelled = np.any(soft.rows(start, len(teacher)) > 0, axis=1)
            _refuse(labelled & ~np.isin(teacher, allowed), f"{who} labels it, but must not", start)


def open_pseudo_labels(folder: Path) -> PseudoLabels:
    """Raises UserError for labels of a teacher that saw the holdout or its own fold, unless marked as leaky."""
    table = read_parquet(folder / "labels.parquet", columns=["teacher", "usable"])
    teacher, usable = (table.column(name).to_numpy() for name in ("teacher", "usable"))
    return PseudoLabels(folder, teacher, usable, read_teachers(folder))


def read_teachers(folder: Path) -> dict[int, list[int]]:
    """Teacher -> student folds of its training videos, of the teachers whose labels are in the store."""
    origin = read_json(folder / ORIGINS)
    trained = {int(teacher): list(folds) for teacher, folds in origin["trained_folds"].items()}
    if not origin["leaky"]:
        check_trained_folds(trained, origin["n_folds"], origin["folder"])
    return dict(sorted(trained.items()))


def origin_of_labels(folder: Path, teacher: int | None) -> dict[str, Any]:
    """`origins.ORIGIN` of what is given the labels of `teacher`, or the mean of all."""
    origins, trained = read_json(folder / ORIGINS), read_teachers(folder)
    seen = {fold for who, folds in trained.items() if teacher in (None, who) for fold in folds}
    of_all = {"leaky": origins["leaky"], "folds": origins.get("folds")}
    return of_all | {"teacher": teacher, "trained_folds": sorted(seen)}


def teacher_of(fold: int, folder: Path) -> int:
    """The teacher of the store that never saw the student fold `fold`."""
    return fold % int(read_json(folder / ORIGINS)["n_folds"])


def _open(path: Path, rows: int, place: int, of: int) -> ArrayFile:
    """Table number `place` of the `of` tables with `rows` rows that a file holds."""
    try:
        soft = ArrayFile(path, first=place * rows, rows=rows)
        total = len(ArrayFile(path))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); rebuild it with `dvc repro pseudo_label`") from None
    if total != of * rows:
        raise UserError(
            f"{path}: {total // of} rows, labels.parquet has {rows}; rebuild it with `dvc repro pseudo_label`"
        )
    return soft
