"""The ensemble without each of its members: .venv/bin/python -m pytest tests/test_contributions.py"""

from pathlib import Path

import numpy as np
import pytest

from framefold.data.folds import HOLDOUT
from framefold.evaluation.metrics import official_scores
from framefold.evaluation.splits import read_labeled
from framefold.inference.predictions import read_predictions, softmax
from framefold.storage import read_json
from tests import tiny_project

ARCHS, FOLDS = tiny_project.ARCHS, tiny_project.FOLDS


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_project.copy(tmp_path / "project"))


def settings_of_bundle():
    """What a plain recomputation starts from; the blend is one of probabilities."""
    bundle = read_json("models/ensemble/bundle.json")
    assert bundle["blend"] == "probs"
    return {
        "weights": dict(zip(ARCHS, bundle["blend_weights"], strict=True)),
        "class_weights": {arch: np.array(bundle["class_weights"][arch]) for arch in ARCHS},
    }


def logits_of(arch, fold, part):
    return read_predictions(f"models/swa/{arch}/{fold}/{part}.parquet")


def labels_without(settings, part, left_out):
    """Labels of the videos of a part by all (arch, fold) but those left out: loops over plain arrays."""
    total, ids = 0.0, None
    kept = {arch: [fold for fold in FOLDS if (arch, fold) not in left_out] for arch in ARCHS}
    weights = {arch: settings["weights"][arch] for arch in ARCHS if kept[arch]}
    if sum(weights.values()) == 0:
        weights = dict.fromkeys(weights, 1.0)
    for arch, weight in weights.items():
        read = [logits_of(arch, fold, part) for fold in kept[arch]]
        ids = read[0][0]
        mean = np.mean([logits.astype(np.float64) for _, logits in read], axis=0)
        probs = softmax(mean.astype(np.float32)) * settings["class_weights"][arch]
        total = total + weight / sum(weights.values()) * probs / probs.sum(axis=1, keepdims=True)
    return ids, total.argmax(axis=1)


def score(part, ids, predicted):
    labeled = read_labeled()
    if part == "holdout":
        truth = dict(zip(labeled.ids, labeled.labels, strict=True))
        assert set(ids) == {video for video, fold in zip(labeled.ids, labeled.folds, strict=True) if fold == HOLDOUT}
    else:
        lines = Path("raw/annotations/test_truth.csv").read_text().split()
        truth = {line.split(",")[0]: labeled.categories.index(line.split(",")[1]) for line in lines}
    return official_scores(np.array([truth[video] for video in ids]), predicted, labeled.categories)["score"]


@pytest.mark.parametrize("part", ["holdout", "test"])
def test_contributions_are_those_of_a_plain_recomputation(project, part):
    found, settings = read_json("metrics/contributions.json"), settings_of_bundle()
    whole = score(part, *labels_without(settings, part, []))
    cases = {("archs", arch): [(arch, fold) for fold in FOLDS] for arch in ARCHS}
    cases |= {("members", f"{arch}/{fold}"): [(arch, fold)] for arch in ARCHS for fold in FOLDS}
    differences = []
    for (kind, name), left_out in cases.items():
        entry = found[kind][name][part]
        expected = score(part, *labels_without(settings, part, left_out)) - whole
        assert entry["difference"] == pytest.approx(expected, abs=1e-9), name
        assert entry["low"] <= entry["difference"] <= entry["high"]
        differences.append(expected)
    assert any(differences)


def test_single_models_are_not_judged_out_of_fold_and_archs_are(project):
    """Out of fold each video has one model of an arch: there is nothing left of it without that."""
    found = read_json("metrics/contributions.json")
    assert all(set(entry) == {"holdout", "test"} for entry in found["members"].values())
    assert all(set(entry) == {"out_of_fold", "holdout", "test"} for entry in found["archs"].values())


def test_the_only_arch_and_the_only_fold_have_no_contribution(project):
    tiny_project.write_params([1], archs=["single_stream"])
    tiny_project.finish_pipeline(["single_stream"])
    assert read_json("metrics/contributions.json") == {"archs": {}, "members": {}}
