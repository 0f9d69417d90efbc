"""Whose labels a model was given, told beside its weights, and the checks that nobody is judged on what it has seen.

origin.json of a teacher or student: {"folds": digest of the split, "n_folds", "trained_folds", "leaky"}
origin.json of a pretraining:        {"folds", "teacher": who labelled, null: all together, "trained_folds", "leaky"}

"trained_folds": student folds whose true labels it learned; of a pretraining, those that its teachers learned.
"leaky": labels that were made without safeguards were given to it, in pretraining or in the first phase of finetuning.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framefold.data.folds import FILE, HOLDOUT, Folds
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
    trained_folds, split = {}, labeled.digest()
    for fold, folders in models.items():
        origins = [read_json(folder / ORIGIN) for folder in folders]
        for folder, origin in zip(folders, origins, strict=True):
            if origin["leaky"] and not leaky:
                raise UserError(f"{folder}: it learned from leaky labels; retrain it with `dvc repro`")
            if origin["n_folds"] != n_folds:
                raise UserError(
                    f"{folder}: it was one of {origin['n_folds']} folds, now there are {n_folds}; "
                    "retrain it with `dvc repro`"
                )
            if origin.get("folds") != split:
                raise UserError(
                    f"{folder}: it was trained on another split than that of {FILE}; retrain it with `dvc repro`"
                )
        trained_folds[fold] = sorted({seen for origin in origins for seen in origin["trained_folds"]})
    return trained_folds


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


def check_given_labels(
    origin: Mapping[str, Any], labeled: Folds, teacher: int | None, fold: int | str, folder: Path
) -> bool:
    """Whether a student of `fold` that is given the labels of `teacher` (None: of all), as `origin` of the `folder`
    that they come from says, is given leaky ones. UserError: they are by somebody else, or of another split, or honest
    ones of somebody who saw the holdout or, where there is one teacher, the fold."""
    labelled, seen, leaky = origin["teacher"], origin["trained_folds"], bool(origin["leaky"])
    problem = ""
    if labelled != teacher:
        problem = f"its labels are by {_who(labelled)}, not by {_who(teacher)}"
    elif origin.get("folds") != labeled.digest():
        problem = f"its labels are by teachers of another split than that of {FILE}"
    elif not leaky and HOLDOUT in seen:
        problem = f"its labels are by {_who(teacher)}, and the holdout was seen"
    elif not leaky and teacher is not None and fold in seen:
        problem = f"its labels are by {_who(teacher)}, which saw fold {fold}"
    if problem:
        raise UserError(f"{folder}: {problem}; redo it with `dvc repro`")
    return leaky


def _who(teacher: int | None) -> str:
    return "all teachers" if teacher is None else f"teacher {teacher}"
