"""How good the teachers' labels are: out of fold on labelled videos, and on the pool where its truth is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from framefold.data.pseudo_labels import NOBODY, Assignment
from framefold.errors import UserError
from framefold.evaluation.calibration import calibration, expected_calibration_error
from framefold.evaluation.metrics import official_scores
from framefold.inference.committee import OutOfFold
from framefold.storage import read_parquet, write_aside

N_BUCKETS = 10
UNKNOWN = -1
Report = dict[str, Any]
Rows = list[dict[str, Any]]
Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]


def teacher_quality(known: OutOfFold, temperature: float, categories: Sequence[str]) -> tuple[Report, Rows]:
    """What the teachers know of the videos that they were not trained on, how sure they are before and after
    `temperature`, and rows of the plot."""
    probs = known.probs(temperature)
    scores, rows = out_of_fold_quality(known.truth, probs, categories)
    scaling = {"temperature": temperature, "after": calibration(probs, known.truth)}
    scaling["before"] = calibration(known.probs(1.0), known.truth)
    return {"teacher_out_of_fold": scores, "calibration": scaling}, rows


def out_of_fold_quality(truth: Ints, probs: Floats, categories: Sequence[str]) -> tuple[Report, Rows]:
    """Official score and accuracy of probabilities (N, C) of labelled videos, and rows of the plot."""
    predicted, confidence = probs.argmax(axis=1), probs.max(axis=1)
    rows = confidence_buckets("out_of_fold", confidence, predicted == truth)
    return label_scores(truth, predicted, categories), rows


def assignment_counts(assigned: Assignment) -> Report:
    counts = {"videos": len(assigned.usable), "not_usable": int((~assigned.usable).sum())}
    counts["without_label"] = int((assigned.usable & (assigned.teacher == NOBODY)).sum())
    return counts | {"by_one_teacher": int((assigned.teacher >= 0).sum())}


def pool_quality(labels: Path, truth_file: Path, categories: Sequence[str]) -> tuple[Report, Rows]:
    """Confidence and spread of the pool's labels; where its truth is on file, their score too (nothing learns it)."""
    label, confidence = (column.to_numpy() for column in read_parquet(labels, columns=["label", "confidence"]).columns)
    counts = np.bincount(label[label >= 0], minlength=len(categories))
    total = max(int(counts.sum()), 1)
    report: Report = {"labels": int(counts.sum()), "mean_confidence": float(confidence.sum(dtype=np.float64)) / total}
    report |= {"classes": int((counts > 0).sum()), "largest_class": float(counts.max() / total)}
    if not truth_file.is_file():
        return report, []
    truth, extended = read_truth(truth_file, read_parquet(labels, columns=["id"])["id"], categories)
    known = (truth != UNKNOWN) & (label >= 0)
    correct = label[known] == truth[known]
    report |= {"ece": expected_calibration_error(confidence[known], correct)} if known.any() else {}
    rows = confidence_buckets("pool", confidence[known], correct)
    return report | label_scores(truth[known], label[known], extended), rows


def read_truth(path: Path, ids: pa.ChunkedArray, categories: Sequence[str]) -> tuple[Ints, list[str]]:
    """Labels (N,) of `ids` from lines `id,category_id`, UNKNOWN where it has none; and the categories, first our own,
    then those that only the truth knows. No Python object per line."""
    options = csv.ReadOptions(column_names=["id", "category_id"])
    types = csv.ConvertOptions(column_types={"id": pa.string(), "category_id": pa.string()})
    try:
        truth = csv.read_csv(path, read_options=options, convert_options=types)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected lines `id,category_id`") from None
    names = truth["category_id"].take(pc.index_in(ids, value_set=truth["id"]))
    extended = [*categories, *sorted(set(names.unique().drop_null().to_pylist()) - set(categories))]
    return pc.index_in(names, value_set=pa.array(extended)).fill_null(UNKNOWN).to_numpy(), extended


def label_scores(truth: Ints, predicted: Ints, categories: Sequence[str]) -> Report:
    """Official score and accuracy of labels (N,) against the truth (N,)."""
    if len(truth) == 0:
        return {"n": 0}
    score = official_scores(truth, predicted, categories)["score"]
    return {"score": score, "accuracy": float(np.mean(truth == predicted)), "n": len(truth)}


def confidence_buckets(source: str, confidence: Floats, correct: npt.NDArray[np.bool_]) -> Rows:
    """A row per tenth of confidence (N,): how sure, how often right (N,), how many."""
    bucket = np.minimum((confidence * N_BUCKETS).astype(np.int64), N_BUCKETS - 1)
    rows = []
    for number in np.unique(bucket).tolist():
        inside = bucket == number
        shown = {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
        rows.append({"source": source, "bucket": (number + 0.5) / N_BUCKETS} | shown | {"n": int(inside.sum())})
    return rows


def write_quality(path: Path | str, rows: Rows) -> None:
    """CSV: source, bucket, confidence, accuracy, n."""
    with write_aside(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.write("source,bucket,confidence,accuracy,n\n")
        for row in rows:
            numbers = (f"{row[name]:.6g}" for name in ("bucket", "confidence", "accuracy"))
            file.write(",".join([row["source"], *numbers, str(row["n"])]) + "\n")
