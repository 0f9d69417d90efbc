"""Plain CSV files that `dvc plots` draws."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from framefold.errors import UserError
from framefold.evaluation.metrics import class_counts, class_f1
from framefold.storage import write_aside


def write_rows(path: Path | str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with write_aside(path) as aside, open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_level1_confusion(
    path: Path | str, truth: np.ndarray, predicted: np.ndarray, categories: Sequence[str]
) -> None:
    """One line per video: its true and its predicted level-1 group, as the template `confusion` expects."""
    rows = ((categories[t][:2], categories[p][:2]) for t, p in zip(truth, predicted, strict=True))
    write_rows(path, ("actual", "predicted"), rows)


def write_class_f1_by_size(
    path: Path | str, truth: np.ndarray, predicted: np.ndarray, categories: Sequence[str], class_sizes: np.ndarray
) -> None:
    """One line per class that occurs, smallest class first: training videos (class_sizes (C,)), F1, videos scored."""
    counts = np.ones((1, len(truth)))
    hits, support, guesses = (c[0] for c in class_counts(counts, truth, predicted, len(categories)))
    f1 = class_f1(hits, support, guesses)
    present = sorted(np.flatnonzero(support + guesses).tolist(), key=lambda i: (class_sizes[i], categories[i]))
    rows = ((int(class_sizes[i]), round(float(f1[i]), 4), int(support[i]), categories[i]) for i in present)
    write_rows(path, ("size", "f1", "samples", "category"), rows)


def write_training_curves(path: Path | str, curves: Mapping[str, Sequence[Path]]) -> None:
    """Training loss against the share of training done, one column per kind of model, the mean of its curves.csv files.

    Stages of very different lengths share one picture: each curve is read at the same 101 points of its own course.
    """
    progress = np.linspace(0, 1, 101)
    given = {name: files for name, files in curves.items() if files}
    columns = {name: np.mean([loss_at(progress, file) for file in files], axis=0) for name, files in given.items()}
    rows = ((round(float(p), 2), *(round(float(c[i]), 4) for c in columns.values())) for i, p in enumerate(progress))
    write_rows(path, ("progress", *columns), rows)


def loss_at(progress: np.ndarray, file: Path) -> np.ndarray:
    """The logged losses of one curves.csv (columns step and loss), interpolated at shares of its last step."""
    with open(file, newline="", encoding="utf-8") as lines:
        points = [(float(line["step"]), float(line["loss"])) for line in csv.DictReader(lines) if line["loss"]]
    steps, losses = np.array(points, dtype=np.float64).reshape(-1, 2).T
    if not len(steps):
        raise UserError(f"{file}: holds no losses; rebuild it with `dvc repro`")
    return np.interp(progress * steps[-1], steps, losses)
