"""How good the teachers' labels are: out of fold on labelled videos, and on the pool where its truth is known."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from framefold.data.folds import Folds
from framefold.errors import UserError
from framefold.evaluation.metrics import official_scores
from framefold.inference.predictions import read_predictions, softmax
from framefold.storage import read_parquet, write_aside

N_BUCKETS = 10
UNKNOWN = -1
Report = dict[str, Any]
Rows = list[dict[str, Any]]
Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.floating]


def out_of_fold_quality(teachers: Sequence[Path], labeled: Folds, categories: Sequence[str]) -> tuple[Report, Rows]:
    """The teachers' official score and accuracy on the videos that they were not trained on, and rows of the plot."""
    parts = [read_predictions(folder / "out_of_fold.parquet") for folder in teachers]
    label_of = dict(zip(labeled.ids.to_pylist(), labeled.label.tolist(), strict=True))
    truth = np.array([label_of[video] for ids, _ in parts for video in ids])
    probs = np.concatenate([softmax(logits) for _, logits in parts])
    predicted, confidence = probs.argmax(axis=1), probs.max(axis=1)
    rows = confidence_buckets("out_of_fold", confidence, predicted == truth)
    return label_scores(truth, predicted, categories), rows


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
    rows = confidence_buckets("pool", confidence[known], label[known] == truth[known])
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
