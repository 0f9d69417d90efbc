"""What a finished run says, in three small files: python -m framefold.study.outcome FOLDER, in the run's folder

truth.parquet   every scored video in order: its part (out_of_fold, holdout, test) and its label; the same for all runs
labels.parquet  the final labels of these videos, null where this run has none (a fold that it did not train)
scores.json     {"final": {part: scores}, "models": {model: {part: entry}}, "optimism": {arch: {part: entry}}}
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from framefold.data.samples import read_columns
from framefold.errors import UserError, command
from framefold.evaluation.metrics import Entry, official_scores, score_interval
from framefold.evaluation.splits import LabeledVideos, Target, read_labeled, read_test_truth
from framefold.inference.bundle import read_bundle
from framefold.inference.final import final_scores, out_of_fold
from framefold.inference.students import PARTS, Logits, Students
from framefold.params.base import load, load_value
from framefold.params.ensemble import EnsembleParams
from framefold.params.reweight import ReweightParams
from framefold.storage import fingerprint_of, read_json, write_json, write_parquet

TRUTH, LABELS, SCORES = "truth.parquet", "labels.parquet", "scores.json"
ONE_FOLD = "one_fold"  # of an architecture: the mean score of its models, each of one fold
TOLERANCE = 1e-9
Scores = dict[str, float]


@dataclass(frozen=True)
class Videos:
    """Everything with a known label: all labelled videos, and test videos where their truth is there."""

    ids: list[str]
    part: np.ndarray  # (N,) of PARTS
    label: np.ndarray  # (N,) indices into categories
    categories: list[str]  # the models' own, then those that only the test truth knows


def read_videos(labeled: LabeledVideos, test_ids: list[str], test: Target) -> Videos:
    """Parts in the order of PARTS, videos within them in store order."""
    rows = labeled.training_rows(), labeled.holdout_rows()
    ids = [*labeled.ids_of(rows[0]), *labeled.ids_of(rows[1]), *(test_ids[row] for row in test.rows)]
    sizes = [len(rows[0]), len(rows[1]), len(test.rows)]
    labels = np.concatenate([labeled.labels[rows[0]], labeled.labels[rows[1]], test.labels])
    return Videos(ids, np.repeat(PARTS, sizes), labels, test.categories)


def truth_table(videos: Videos) -> pa.Table:
    """Ids count by a digest: two runs with the same one were scored on the same videos."""
    columns = {"part": pa.array(videos.part.tolist()).dictionary_encode(), "label": videos.label.astype(np.uint16)}
    content = {"ids": videos.ids, "part": videos.part.tolist(), "label": videos.label.tolist()}
    digest = fingerprint_of(content | {"categories": videos.categories})
    return pa.table(columns, metadata={"videos": digest, "categories": ",".join(videos.categories)})


def labels_table(labels: np.ndarray, truth: pa.Table) -> pa.Table:
    """(N,) final labels, -1: none; of the videos of `truth`."""
    column = pa.array(labels.clip(min=0).astype(np.uint16), mask=labels < 0)
    return pa.table({"label": column}, metadata={"videos": truth.schema.metadata[b"videos"]})


def final_labels(students: Students, logits: Mapping[str, Logits], videos: Videos, test: Target) -> np.ndarray:
    """(N,) of the ensemble, as the last stage computes them; -1 where a labelled video's fold has no model.

    Test videos have the labels that are submitted: those of the refits, where there are refits.
    """
    bundle = read_bundle(students.models / "ensemble")
    params, fitted = load(EnsembleParams), read_stated("reweight")["blend"]["used"]
    own = out_of_fold(students, logits, load(ReweightParams), params.blend)
    scores = final_scores(bundle, logits, own, params.weights, fitted)
    final = {part: each.argmax(axis=1) for part, each in scores.items()}
    if load_value("full_data"):
        final["test"] = bundle.scores({arch: students.refit_logits(arch) for arch in bundle.archs}).argmax(axis=1)
    trained = np.isin(students.labeled.folds[students.labeled.training_rows()], list(students.folds))
    labels = np.full(len(videos.label), -1)
    labels[: len(trained)][trained] = final["out_of_fold"]
    labels[videos.part == "holdout"] = final["holdout"]
    labels[videos.part == "test"] = final["test"][test.rows]
    return labels


def part_scores(videos: Videos, labels: np.ndarray) -> dict[str, Scores]:
    """The official score and its parts, of every part with a predicted video."""
    rows = {part: (videos.part == part) & (labels >= 0) for part in PARTS}
    return {
        part: official_scores(videos.label[own], labels[own], videos.categories)
        for part, own in rows.items()
        if own.any()
    }


def check_scores(scores: Mapping[str, Scores], metrics: Mapping[str, Any]) -> None:
    """UserError: the labels are not those that the last stage has scored."""
    last = metrics["ensemble"] | only_scores(metrics.get("full_data", {}))
    stated = {part: entry["score"] for part, entry in last.items()}
    own = {part: entry["score"] for part, entry in scores.items()}
    if own.keys() != stated.keys() or any(abs(own[part] - stated[part]) > TOLERANCE for part in own):
        raise UserError(f"study: the run's labels score {own}, its metrics/metrics.json says {stated}")


def single_models(students: Students, arch: str, videos: Videos, test: Target, params: EnsembleParams) -> Any:
    """{part: entry}: the mean score of the models of single folds, on parts that none of them was tuned on.

    Comparable with the architecture's out-of-fold score, where each video is judged by one model, too.
    """
    folds = [students.fold_logits(arch, fold) for fold in students.folds]
    predicted = {
        "holdout": np.stack([fold["holdout"].argmax(axis=1) for fold in folds]),
        "test": np.stack([fold["test"].argmax(axis=1)[test.rows] for fold in folds]),
    }
    truths = {part: videos.label[videos.part == part] for part in predicted}
    given = [part for part in predicted if len(truths[part])]
    return {part: mean_entry(truths[part], predicted[part], videos.categories, params) for part in given}


def mean_entry(truth: np.ndarray, predicted: np.ndarray, categories: list[str], params: EnsembleParams) -> Entry:
    """Mean scores of the labels (R, N) of R models, with the interval of their mean over resampled videos."""
    scores = [official_scores(truth, labels, categories) for labels in predicted]
    low, high = score_interval(truth, predicted, categories, params.bootstrap, params.seed)
    return {name: float(np.mean([each[name] for each in scores])) for name in scores[0]} | {
        "score_low": low,
        "score_high": high,
    }


def write_outcome(folder: Path) -> None:
    labeled, test_ids = read_labeled(), read_columns("test", ["id"])["id"].to_pylist()
    students = Students(labeled, test_ids, load_value("archs"), load_value("folds"))
    test = read_test_truth(load_value("data.root"), test_ids, labeled.categories)
    videos, params = read_videos(labeled, test_ids, test), load(EnsembleParams)
    labels = final_labels(students, {arch: students.logits(arch) for arch in students.archs}, videos, test)
    scores, metrics, optimism = part_scores(videos, labels), read_stated("metrics"), read_stated("optimism")
    check_scores(scores, metrics)
    models = {name: only_scores(entries) for name, entries in metrics.items() if name != "ensemble"}
    models |= {f"{arch}_{ONE_FOLD}": single_models(students, arch, videos, test, params) for arch in students.archs}
    models |= {f"probe_{view}": entries for view, entries in read_json("metrics/reference.json").items()}
    truth = truth_table(videos)
    write_parquet(folder / TRUTH, truth)
    write_parquet(folder / LABELS, labels_table(labels, truth))
    write_json(folder / SCORES, {"final": scores, "models": models, "optimism": optimism})


def read_stated(name: str) -> dict[str, Any]:
    """What the last stage has written; an arm with leaks says so by its name (arms.py)."""
    content = read_json(f"metrics/{name}.json")
    return content.get("leaky", content)


def only_scores(entries: dict[str, Any]) -> dict[str, Entry]:
    """By part, without remarks."""
    return {part: entry for part, entry in entries.items() if isinstance(entry, dict)}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    write_outcome(parser.parse_args().folder)


if __name__ == "__main__":
    main()
