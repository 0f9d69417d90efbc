"""What a finished run says of itself: .venv/bin/python -m pytest tests/test_study_outcome.py

On the finished project of tiny_project.py: real stages, random students, two of three folds.
"""

import contextlib
import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_project
from sklearn.metrics import f1_score

from framefold.data.folds import REFIT
from framefold.errors import UserError
from framefold.evaluation.metrics import official_scores
from framefold.inference.predictions import read_predictions
from framefold.storage import read_json, read_parquet, write_json
from framefold.study.outcome import LABELS, SCORES, TRUTH, mean_entry, write_outcome


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    return tiny_project.copy(tmp_path_factory.mktemp("finished") / "project")


@pytest.fixture(scope="module")
def outcome(project, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("outcome")
    with contextlib.chdir(project):
        write_outcome(folder)
    return folder


def columns(outcome: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """part, truth, labels (-1: none), categories."""
    truth, labels = pq.read_table(outcome / TRUTH), pq.read_table(outcome / LABELS)["label"]
    own = np.array([-1 if label is None else label for label in labels.to_pylist()])
    categories = truth.schema.metadata[b"categories"].decode().split(",")
    return np.array(truth["part"].to_pylist()), truth["label"].to_numpy(), own, categories


def test_labels_of_test_videos_are_those_of_the_submission(project, outcome):
    part, _, labels, categories = columns(outcome)
    with open(project / "data/predictions/result.csv", newline="") as file:
        submitted = dict(csv.reader(file))
    ids = read_parquet(project / "data/samples/test.parquet")["id"].to_pylist()
    assert [categories[label] for label in labels[part == "test"]] == [submitted[video] for video in ids]


def test_labels_of_refits_are_those_that_are_submitted(tmp_path):
    folder = tiny_project.copy(tmp_path / "project")
    with contextlib.chdir(folder):
        tiny_project.write_params(tiny_project.FOLDS, full_data=[REFIT])
        for arch in tiny_project.ARCHS:
            tiny_project.write_students(arch, [REFIT])
        tiny_project.finish_pipeline(tiny_project.ARCHS)
        write_outcome(tmp_path)
    test_labels_of_test_videos_are_those_of_the_submission(folder, tmp_path)
    scores, metrics = read_json(tmp_path / SCORES)["final"], read_json(folder / "metrics/metrics.json")
    assert scores["test"]["score"] == pytest.approx(metrics["full_data"]["test"]["score"], abs=1e-9)
    assert scores["holdout"]["score"] == pytest.approx(metrics["ensemble"]["holdout"]["score"], abs=1e-9)


def test_every_labelled_video_is_there_and_those_of_a_fold_without_a_model_have_no_label(project, outcome):
    part, truth, labels, _ = columns(outcome)
    folds = read_parquet(project / "data/folds.parquet").to_pandas()
    known = folds[folds["fold"] >= 0]
    assert np.array_equal(truth[part == "out_of_fold"], known["label"])
    assert np.array_equal(labels[part == "out_of_fold"] >= 0, known["fold"].isin(tiny_project.FOLDS))
    assert np.array_equal(truth[part == "holdout"], folds[folds["fold"] == -1]["label"])
    assert 0 < (labels < 0).sum() < (part == "out_of_fold").sum()


@pytest.mark.parametrize("split", ["out_of_fold", "holdout", "test"])
def test_labels_give_the_scores_of_the_last_stage(project, outcome, split):
    """By sklearn, from the labels alone."""
    part, truth, labels, categories = columns(outcome)
    rows = (part == split) & (labels >= 0)
    pairs = [[[categories[i] for i in column[rows]] for column in (truth, labels)]]
    pairs.append([[category[:2] for category in column] for column in pairs[0]])
    own = np.mean([f1_score(*pair, average=how) for pair in pairs for how in ("micro", "macro")])
    stated = read_json(project / "metrics/metrics.json")["ensemble"][split]["score"]
    assert read_json(outcome / SCORES)["final"][split]["score"] == pytest.approx(stated, abs=1e-9)
    assert own == pytest.approx(stated, abs=1e-9)


def test_models_are_those_of_the_metrics_and_of_the_linear_probe(project, outcome):
    models = read_json(outcome / SCORES)["models"]
    metrics, reference = (read_json(project / f"metrics/{name}.json") for name in ("metrics", "reference"))
    assert set(models) == {
        *("single_stream", "dual_stream", "single_stream_one_fold", "dual_stream_one_fold", "best_fold"),
        *("probe_text", "probe_frames", "probe_both"),
    }
    assert models["dual_stream"] == metrics["dual_stream"]
    assert models["probe_text"] == reference["text"]


def test_optimism_is_that_of_the_last_stage(project, outcome):
    stated = read_json(project / "metrics/optimism.json")
    assert stated
    assert read_json(outcome / SCORES)["optimism"] == stated


def test_single_fold_models_are_judged_each_by_itself(project, outcome):
    """The mean of the official scores of each fold's own predictions, which is not that of their blend."""
    part, truth, _, categories = columns(outcome)
    scores = []
    for fold in tiny_project.FOLDS:
        _, logits = read_predictions(project / f"models/swa/dual_stream/{fold}/test.parquet")
        scores.append(official_scores(truth[part == "test"].astype(int), logits.argmax(axis=1), categories)["score"])
    entries = read_json(outcome / SCORES)["models"]
    entry = entries["dual_stream_one_fold"]["test"]
    assert entry["score"] == pytest.approx(np.mean(scores))
    assert entry["score_low"] < entry["score"] < entry["score_high"]
    assert "out_of_fold" not in entries["dual_stream_one_fold"]
    assert entry["score"] != pytest.approx(entries["dual_stream"]["test"]["score"], abs=1e-6)


def test_labels_that_are_not_those_of_the_metrics_are_refused(project, tmp_path):
    metrics = read_json(project / "metrics/metrics.json")
    changed = metrics | {"ensemble": metrics["ensemble"] | {"test": metrics["ensemble"]["test"] | {"score": 0.1234}}}
    write_json(project / "metrics/metrics.json", changed)
    try:
        with contextlib.chdir(project), pytest.raises(UserError, match=r"0\.1234"):
            write_outcome(tmp_path)
    finally:
        write_json(project / "metrics/metrics.json", metrics)
    assert list(tmp_path.iterdir()) == []


def test_the_interval_of_a_mean_of_equal_models_is_that_of_one():
    from framefold.params.ensemble import EnsembleParams

    params = EnsembleParams(blend="probs", weights="simplex", min_gain=0.0, bootstrap=50, seed=0)
    rng = np.random.default_rng(0)
    truth, labels = rng.integers(0, 4, 80), rng.integers(0, 4, 80)
    categories = ["0101", "0102", "0201", "0202"]
    one, three = (mean_entry(truth, np.stack([labels] * n), categories, params) for n in (1, 3))
    assert three == pytest.approx(one)
