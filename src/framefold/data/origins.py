"""Whose labels a model has learned, told beside its weights, and the checks that nobody is judged on what it has seen.

origin.json of a teacher or student:      {"folds": digest of the split, "n_folds", "trained_folds", "leaky"}
origin.json of a pretraining for students: {"teacher": whose labels, null for the mean of all, "trained_folds", "leaky"}

"trained_folds": student folds of the labelled videos that it was trained on, or that those were who labelled for it;
"leaky": it was pretrained on labels made without safeguards.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framefold.data.folds import HOLDOUT, Folds
from framefold.errors import UserError
from framefold.storage import read_json

ORIGIN = "origin.json"
TrainedFolds = Mapping[int, Sequence[int]]  # fold that a model holds out -> student folds of its training videos


def origin_of(labeled: Folds, trained: npt.NDArray[np.int64], n_folds: int, leaky: bool = False) -> dict[str, Any]:
    """Of a model that learned the labels of the rows `trained`, one of `n_folds`."""
    folds = np.unique(labeled.fold[trained]).tolist()
    return {"leaky": leaky, "folds": labeled.digest(), "n_folds": n_folds, "trained_folds": folds}


def read_origins(
    models: Mapping[int, Sequence[Path]], labeled: Folds, n_folds: int, leaky: bool
) -> dict[int, list[int]]:
    """Fold -> student folds of the training videos of the models that hold it out, of all of them together. UserError:
    one was trained on another split, was one of another number of folds, or learned leaky labels and is not allowed."""
    trained_folds = {}
    for fold, folders in models.items():
        origins = [read_json(folder / ORIGIN) for folder in folders]
        for folder, origin in zip(folders, origins, strict=True):
            if problem := _problem(origin, labeled, n_folds, leaky):
                raise UserError(f"{folder}: it {problem}; retrain it with `dvc repro`")
        trained_folds[fold] = sorted({seen for origin in origins for seen in origin["trained_folds"]})
    return trained_folds


def _problem(origin: Mapping[str, Any], labeled: Folds, n_folds: int, leaky: bool) -> str | None:
    if origin["leaky"] and not leaky:
        return "learned from leaky labels"
    if origin["n_folds"] != n_folds:
        return f"was one of {origin['n_folds']} folds, now there are {n_folds}"
    if origin["folds"] != labeled.digest():
        return "was trained on another split than that of data/folds.parquet"
    return None


def check_trained_folds(trained_folds: TrainedFolds, n_folds: int, folder: Path | str) -> None:
    """Raises UserError for a model that was trained on the holdout or on the fold that it is to judge."""
    for held_out, folds in trained_folds.items():
        if HOLDOUT in folds:
            raise UserError(f"{folder}/{held_out}: it was trained on the holdout; retrain it with `dvc repro`")
        own = [fold for fold in folds if fold % n_folds == held_out]
        if own:
            raise UserError(
                f"{folder}/{held_out}: it was trained on fold {own[0]}, which it must not have seen; "
                "retrain it with `dvc repro`"
            )


def check_pretraining(folder: Path, teacher: int | None, fold: int | str) -> bool:
    """Whether a pretraining learned leaky labels. UserError: not those of `teacher` (None: the mean of all), or honest
    ones of somebody who saw the holdout or, where there is one teacher, the student's `fold`."""
    origin = read_json(folder / ORIGIN)
    learned, seen, leaky = origin["teacher"], origin["trained_folds"], bool(origin["leaky"])
    if learned != teacher:
        raise UserError(
            f"{folder}: it learned from {_who(learned)}, not from {_who(teacher)}; redo it with `dvc repro`"
        )
    if not leaky and HOLDOUT in seen:
        raise UserError(f"{folder}: {_who(teacher)} saw the holdout; redo it with `dvc repro`")
    if not leaky and teacher is not None and fold in seen:
        raise UserError(f"{folder}: {_who(teacher)} saw fold {fold}, which is to judge; redo it with `dvc repro`")
    return leaky


def _who(teacher: int | None) -> str:
    return "all teachers" if teacher is None else f"teacher {teacher}"
