"""Greedy soups of checkpoints: .venv/bin/python -m pytest tests/test_greedy_soup.py"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from framefold.data.videos import open_labeled, open_videos, read_categories
from framefold.evaluation.metrics import official_scores
from framefold.evaluation.selection import selection_checks, selection_of
from framefold.inference import fold_models
from framefold.inference.greedy_soup import FoldVideos, choose_soup, greedy_soup
from framefold.inference.predict import predict_logits
from framefold.models.end_to_end import load_student
from framefold.params.base import load
from framefold.params.finetune import CheckpointParams
from framefold.params.models import StudentParams
from framefold.storage import read_json
from framefold.training.checkpoint_choice import top_gains
from tests import tiny_project

CATEGORIES = [f"{group:02d}{sub:02d}" for group in range(2) for sub in range(3)]


def distance_score(points):
    """A soup is worth how near the mean of its points is to the origin."""

    def score(soup):
        return -float(np.linalg.norm(np.mean([points[name] for name in soup], axis=0)))

    return score


def test_a_toy_with_a_known_answer():
    """b is best; a, across from it, brings the mean nearer to the origin; c and d take it away again."""
    points = {"a": (-1.2, 0.0), "b": (1.0, 0.0), "c": (3.0, 0.0), "d": (0.0, 2.0)}
    assert greedy_soup(list(points), distance_score(points)) == ("a", "b")


def test_one_that_changes_nothing_joins_and_one_that_lowers_does_not():
    """`if the score does not fall`: equal is enough."""
    assert greedy_soup(["a", "b"], lambda soup: 1.0) == ("a", "b")
    assert greedy_soup(["a", "b"], lambda soup: {("a",): 0.5, ("b",): 0.6}.get(soup, 0.55)) == ("b",)


def test_it_is_never_worse_than_the_best_one_alone():
    for seed in range(20):
        points = dict(zip("abcd", np.random.default_rng(seed).normal(size=(4, 2)), strict=True))
        score = distance_score(points)
        assert score(greedy_soup("abcd", score)) >= max(score((name,)) for name in "abcd")


def test_of_equal_checkpoints_the_later_one_is_the_first():
    tried = []
    greedy_soup(["a", "b"], lambda soup: tried.append(soup) or (0.5 if len(soup) == 1 else 0.1))
    assert tried == [("a",), ("b",), ("a", "b")]
    assert greedy_soup(["a", "b"], lambda soup: 0.5 if len(soup) == 1 else 0.1) == ("b",)


def guesses(seed, n=80):
    """Checkpoints that know nothing, and soups that know nothing new: whatever choosing gains is luck."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, n)
    soups = [soup for size in range(1, 5) for soup in itertools.combinations("abcd", size)]
    predicted = {soup: rng.integers(0, 6, n) for soup in soups}
    return predicted, FoldVideos(labels, np.arange(n), CATEGORIES)


def test_gains_are_those_of_the_chosen_soup_over_all_checkpoints():
    predicted, fold = guesses(0)
    soup, gains = choose_soup("abcd", predicted.__getitem__, fold)
    chosen, uniform = (official_scores(fold.labels, predicted[s], CATEGORIES)["score"] for s in (soup, tuple("abcd")))
    assert gains["in_sample_gain"] == pytest.approx(chosen - uniform)


def test_gain_on_noise_is_claimed_in_sample_but_not_cross_fitted():
    found = [choose_soup("abcd", predicted.__getitem__, fold)[1] for predicted, fold in map(guesses, range(60))]
    in_sample, honest = ([gains[name] for gains in found] for name in ("in_sample_gain", "cross_fitted_gain"))
    assert np.mean(in_sample) > 0.03
    assert np.mean(honest) < 2 * np.std(honest) / len(honest) ** 0.5


def test_a_fold_of_one_group_claims_no_honest_gain():
    predicted, fold = guesses(0)
    fold = FoldVideos(fold.labels, np.zeros(80, np.int64), CATEGORIES)
    assert choose_soup("abcd", predicted.__getitem__, fold)[1]["cross_fitted_gain"] == 0


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the finished project with three checkpoints a fold, of single_stream alone."""
    monkeypatch.chdir(tiny_project.copy(tmp_path / "project"))
    tiny_project.write_params([0], archs=["single_stream"], **{"average_weights.last": 3})
    tiny_project.write_students("single_stream", [0], checkpoints=3)


def checkpoint(epoch):
    return load_file(f"models/finetune/single_stream/0/epoch-{epoch}.safetensors")


def choose_one(monkeypatch):
    """A stand-in for the choice: checkpoints 0 and 2, whatever they score."""
    gains = {"in_sample_gain": 0.25, "cross_fitted_gain": 0.125}
    monkeypatch.setattr(fold_models, "choose_soup", lambda names, *_: ((names[0], names[2]), gains))


def test_the_stage_averages_what_was_chosen_and_tells_the_optimism(project, monkeypatch):
    choose_one(monkeypatch)
    changes = {"average_weights.last": 3, "average_weights.method": "greedy"}
    tiny_project.write_params([0], archs=["single_stream"], **changes)
    tiny_project.finish_pipeline(["single_stream"])
    averaged, parts = load_file("models/swa/single_stream/0/model.safetensors"), (checkpoint(0), checkpoint(2))
    assert all(np.allclose(averaged[name], (parts[0][name] + parts[1][name]) / 2, atol=1e-6) for name in averaged)
    gains = {"in_sample_gain": 0.25, "cross_fitted_gain": 0.125}
    assert read_json("metrics/selection.json") == {"single_stream": {"greedy": gains, "optimism": 0.125}}
    assert read_json("metrics/alive.json")["greedy_checkpoints/single_stream"]["ok"]


def test_a_choice_that_harms_unseen_videos_fails_its_check():
    gains = {"in_sample_gain": 0.01, "cross_fitted_gain": -0.02}
    folds = [{"finetune": {"selection": gains}}, {"finetune": {"selection": gains}, "selection": gains}]
    found = {"single_stream": selection_of(folds)}
    assert found["single_stream"]["optimism"] == pytest.approx(0.06)
    assert {name: check["ok"] for name, check in selection_checks(found).items()} == {
        "top_checkpoints/single_stream": False,
        "greedy_checkpoints/single_stream": False,
    }


def let_be_right(epoch):
    """The fold's videos get the labels that a checkpoint gives them."""
    folds, videos = open_labeled(), open_videos("labeled", "small")
    rows, label = folds.validation(0), folds.label.copy()
    model = load_student(Path("models/finetune/single_stream/0"), f"epoch-{epoch}.safetensors")
    dataset = videos.dataset(rows, load(StudentParams).inputs)
    label[rows] = predict_logits(model, dataset, 16, "cpu").argmax(axis=1)
    replace(folds, label=label).write()


def spoil(epoch):
    weights, classes = checkpoint(epoch), len(read_categories())
    (bias,) = (name for name, tensor in weights.items() if name.startswith("head.") and tensor.shape == (classes,))
    rarest = np.bincount(open_labeled().label[open_labeled().validation(0)], minlength=classes).argmin()
    weights[bias] = 1e4 * np.eye(classes, dtype=np.float32)[rarest]
    save_file(weights, f"models/finetune/single_stream/0/epoch-{epoch}.safetensors")


def test_the_stage_scores_its_soups_as_its_own_predictions_are_scored(project):
    """The chosen soup's gain over the uniform mean, from the fold scores of two runs of the stage.

    Checkpoint 0 is right; 1 answers one class whatever it sees, and so does every mean with it."""
    let_be_right(0)
    spoil(1)
    scores = {}
    for method in ("uniform", "greedy"):
        changes = {"average_weights.last": 3, "average_weights.method": method}
        tiny_project.write_params([0], archs=["single_stream"], **changes)
        tiny_project.run_stage("average_weights", "--arch", "single_stream")
        scores[method] = read_json("models/swa/single_stream/metrics.json")["folds"]["0"]
    gain = scores["greedy"]["swa"] - scores["uniform"]["swa"]
    assert "selection" not in scores["uniform"]
    assert scores["greedy"]["selection"]["in_sample_gain"] == pytest.approx(gain)
    assert gain > 0.1


def test_where_nothing_is_chosen_nothing_is_optimistic(project):
    tiny_project.finish_pipeline(["single_stream"])
    assert read_json("metrics/selection.json") == {"single_stream": {"optimism": 0}}


def test_choosing_the_top_epochs_of_noise_gains_in_sample_alone():
    """The same for `checkpoints.select: top`, whose epochs finetune scores on both halves."""
    rng = np.random.default_rng(0)
    runs = [[{"ema_halves": halves} for halves in rng.normal(0.5, 0.02, (6, 2)).tolist()] for _ in range(200)]
    found = [top_gains(run, CheckpointParams(keep=2, select="top")) for run in runs]
    assert np.mean([gains["in_sample_gain"] for gains in found]) > 0.015
    assert abs(np.mean([gains["cross_fitted_gain"] for gains in found])) < 0.004


def test_gains_of_the_top_epochs_by_hand():
    """Half 0 picks epochs 0 and 2, half 1 epochs 1 and 2; the last two are 1 and 2."""
    epochs = [{"ema_halves": halves} for halves in ([0.9, 0.1], [0.2, 0.8], [0.5, 0.4])]
    gains = top_gains(epochs, CheckpointParams(keep=2, select="top"))
    assert gains["in_sample_gain"] == pytest.approx(((0.7 - 0.35) + (0.6 - 0.6)) / 2)
    assert gains["cross_fitted_gain"] == pytest.approx(((0.25 - 0.6) + (0.35 - 0.35)) / 2)
