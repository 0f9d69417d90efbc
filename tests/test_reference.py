"""The linear probe: .venv/bin/pytest tests/test_reference.py"""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.svm import LinearSVC

from framefold.data.features import FeatureStore, write_store
from framefold.data.shards import KeptShards
from framefold.errors import UserError
from framefold.evaluation.metrics import official_scores
from framefold.evaluation.probe import VIEWS, ProbeVideos, mean_features, probe_scores, read_videos
from framefold.evaluation.splits import LabeledVideos, read_labeled
from framefold.inference.predictions import PROBE, read_predictions, write_predictions
from framefold.params.reference import ReferenceParams
from framefold.scratch import Scratch
from framefold.storage import read_json, write_parquet
from stages import reference
from tests import tiny_project

PARAMS = ReferenceParams(max_ngram=3, min_df=2, frame_weight=1.5, regularization=1.0)
CATEGORIES = [f"{text:02d}{look:02d}" for text in range(3) for look in range(3)]
TOPICS = ["红烧牛肉的做法", "篮球比赛集锦", "手机评测视频"]


def videos(n: int, seed: int) -> tuple[ProbeVideos, np.ndarray]:
    """Nine classes: the text tells three topics apart, the frames three looks."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 9, n)
    texts = ["".join(rng.choice(list(TOPICS[label // 3]), 5)) for label in labels]
    frames = rng.normal(size=(n, 8)) + 3 * np.eye(8)[labels % 3]
    return ProbeVideos(texts, (frames / np.linalg.norm(frames, axis=1, keepdims=True)).astype(np.float32)), labels


@pytest.fixture(scope="module")
def fitted():
    train, labels = videos(300, seed=0)
    test, truth = videos(200, seed=1)
    scores = probe_scores(train, labels, [test], 9, PARAMS)
    return {view: official_scores(truth, scores[view][0].argmax(axis=1), CATEGORIES)["score"] for view in VIEWS}


def test_both_views_together_beat_each_alone(fitted):
    assert fitted["both"] > max(fitted["text"], fitted["frames"]) + 0.1


def test_each_view_alone_beats_chance(fitted):
    assert min(fitted["text"], fitted["frames"]) > 0.3


def tfidf(train: list[str], texts: list[str], params: ReferenceParams) -> np.ndarray:
    """(1 + ln count) (1 + ln((1 + N) / (1 + df))) of character n-grams, each text of unit length; in plain loops."""

    def counts(text: str) -> Counter[str]:
        return Counter(text[at : at + n] for n in range(1, params.max_ngram + 1) for at in range(len(text) - n + 1))

    found = Counter(gram for text in train for gram in counts(text))
    grams = sorted(gram for gram, videos in found.items() if videos >= params.min_df)
    rows = np.zeros((len(texts), len(grams)))
    for row, text in zip(rows, texts, strict=True):
        for gram, count in counts(text).items():
            if gram in grams:
                idf = 1 + np.log((1 + len(train)) / (1 + found[gram]))
                row[grams.index(gram)] = (1 + np.log(count)) * idf
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize(
    "change",
    [{}, {"max_ngram": 1}, {"min_df": 9}, {"frame_weight": 0.2}, {"regularization": 0.05}],
    ids=lambda change: ",".join(change) or "demo",
)
def test_it_is_a_linear_svm_on_tfidf_and_weighted_frames(change):
    """Every parameter counts: another value of any of them gives other decision values."""
    params = PARAMS.model_copy(update=change)
    (train, labels), (test, _) = videos(120, seed=0), videos(40, seed=1)
    (scores,) = probe_scores(train, labels, [test], 9, params)["both"]
    seen, unseen = (
        np.hstack([tfidf(train.texts, each.texts, params), params.frame_weight * each.frames]) for each in (train, test)
    )
    svm = LinearSVC(C=params.regularization, random_state=0).fit(seen, labels)
    np.testing.assert_allclose(scores, svm.decision_function(unseen), atol=2e-3)
    if change:
        assert np.abs(scores - probe_scores(train, labels, [test], 9, PARAMS)["both"][0]).max() > 0.05


@pytest.fixture
def features(tmp_path) -> FeatureStore:
    """Videos of 2, 0 and 3 frames."""
    kept = KeptShards(tmp_path / "parts", 2)
    frames = np.array([[3, 0], [5, 8], [-1, 0], [0, 1], [-2, 2]], dtype=np.float16)
    kept.write("all", ["a", "b", "c"], np.array([2, 0, 3]), frames, [])
    write_store(tmp_path / "features", kept, ["all"], {})
    return FeatureStore(tmp_path / "features")


def test_a_videos_frames_are_their_mean_at_unit_length(features):
    """A sum over padding, or over a neighbour's frames, would be another vector."""
    expected = [[2**-0.5, 2**-0.5], [0, 0], [-(2**-0.5), 2**-0.5]]
    np.testing.assert_allclose(mean_features(features), expected, atol=1e-6)


def test_a_videos_text_is_all_three_kinds_row_by_row(tmp_path, features):
    texts = {"title": ["t1", "t2", "t3"], "asr": ["a1", "", "a3"], "ocr": ["o1", "o2", ""]}
    write_parquet(tmp_path / "samples.parquet", pa.table({"id": ["a", "b", "c"], **texts}))
    assert read_videos(tmp_path / "samples.parquet", features).texts == ["t1 a1 o1", "t2  o2", "t3 a3 "]


def test_texts_and_frames_of_other_videos_are_refused(tmp_path, features):
    """Also the same videos in another order."""
    texts = {name: ["x", "y", "z"] for name in ("title", "asr", "ocr")}
    write_parquet(tmp_path / "samples.parquet", pa.table({"id": ["a", "c", "b"], **texts}))
    with pytest.raises(UserError, match="not the same videos; rebuild both with `dvc repro`"):
        read_videos(tmp_path / "samples.parquet", features)


def test_videos_without_text_or_frames_are_legal():
    train, labels = videos(60, seed=0)
    empty = ProbeVideos([""] * 2, np.zeros((2, 8), dtype=np.float32))
    silent = ProbeVideos([""] * 60, train.frames)
    assert probe_scores(train, labels, [empty], 9, PARAMS)["both"][0].shape == (2, 9)
    assert np.isfinite(probe_scores(silent, labels, [empty], 9, PARAMS)["text"][0]).all()


@pytest.mark.parametrize("present", [[4], [2, 7], [0, 3, 8]])
def test_a_class_without_training_videos_is_never_predicted(present):
    """Also where one or two classes are left, for which a linear SVM has no column each."""
    train, labels = videos(200, seed=0)
    rows = np.flatnonzero(np.isin(labels, present))
    test, _ = videos(50, seed=1)
    scores = probe_scores(train.take(rows), labels[rows], [test], 9, PARAMS)
    assert all(np.isfinite(scores[view][0]).all() for view in VIEWS)
    assert all(set(scores[view][0].argmax(axis=1)) <= set(present) for view in VIEWS)


def test_the_stage_scores_the_same_videos_as_the_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_project.copy(tmp_path / "project"))
    tiny_project.run_stage("reference")
    probe, models = read_json("metrics/reference.json"), read_json("metrics/metrics.json")["ensemble"]
    assert probe.keys() == set(VIEWS)
    for parts in probe.values():
        assert {part: entry["n"] for part, entry in parts.items()} == {part: models[part]["n"] for part in models}
        assert all(entry.keys() == models[part].keys() for part, entry in parts.items())


def test_what_the_models_gain_on_the_probe_is_told_video_by_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_project.copy(tmp_path / "project"))
    probe, models = read_json("metrics/reference.json")["both"], read_json("metrics/metrics.json")["ensemble"]
    gains = read_json("metrics/comparisons.json")["ensemble_minus_probe"]
    assert gains.keys() == models.keys() == probe.keys()
    for part, gain in gains.items():
        assert gain["difference"] == pytest.approx(models[part]["score"] - probe[part]["score"], abs=1e-12)
        assert gain["low"] < gain["difference"] < gain["high"]
    check = read_json("metrics/alive.json")["ensemble_against_probe"]
    assert check == {"value": gains["test"]["low"], "against": 0, "ok": gains["test"]["low"] > 0}


def test_a_deep_part_that_does_not_earn_its_cost_is_noticed(tmp_path, monkeypatch):
    """The probe is always right on test videos."""
    monkeypatch.chdir(tiny_project.copy(tmp_path / "project"))
    truth = dict(line.split(",") for line in Path("raw/annotations/test_truth.csv").read_text().split())
    categories = read_json("data/samples/categories.json")["categories"]
    ids, logits = read_predictions(PROBE / "test.parquet")
    right = np.eye(logits.shape[1])[[categories.index(truth[video]) if video in truth else 0 for video in ids]]
    write_predictions(PROBE / "test.parquet", ids, right)
    tiny_project.run_stage("ensemble")
    assert read_json("metrics/alive.json")["ensemble_against_probe"]["ok"] is False
    assert read_json("metrics/comparisons.json")["ensemble_minus_probe"]["test"]["high"] < 0


def test_a_videos_own_label_never_reaches_its_prediction(tmp_path, monkeypatch):
    """Wrong labels in one fold change the predictions of the others, not of that fold: what it shows is out of fold.

    The labels of fold 0 are all set to one class. Had the probe of fold 0 seen them, it would predict that class.
    """
    monkeypatch.chdir(tiny_project.copy(tmp_path / "project"))
    labeled = read_labeled()
    rng = np.random.default_rng(0)
    pool = ProbeVideos([TOPICS[label % 3] for label in labeled.labels], rng.normal(size=(len(labeled.ids), 4)))

    def out_of_fold(name: str, labeled: LabeledVideos) -> np.ndarray:
        with Scratch(name, {}) as scratch:
            predictions = reference.predict_all(pool, pool.take(np.arange(2)), labeled, [0, 1], PARAMS, scratch)
        return predictions["both"]["out_of_fold"]

    before = out_of_fold("before", labeled)
    wrong = dataclasses.replace(labeled, labels=np.where(labeled.folds == 0, 3, labeled.labels))
    after = out_of_fold("after", wrong)
    own = labeled.folds[labeled.out_of_fold_rows([0, 1])] == 0
    assert np.array_equal(before[own], after[own])
    assert not np.array_equal(before[~own], after[~own])
