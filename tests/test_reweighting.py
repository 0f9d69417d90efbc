"""Class weights: .venv/bin/pytest tests/test_reweighting.py"""

import numpy as np
import pytest

from framefold.data.folds import HOLDOUT
from framefold.evaluation.metrics import official_scores
from framefold.evaluation.splits import LabeledVideos
from framefold.inference.cross_fitting import cross_fitted, deal_parts
from framefold.inference.ensembling import reweighted_probs
from framefold.inference.predictions import softmax
from framefold.inference.reweighting import class_weights, fit_reweighting, prior_weights, weights_fitted_on
from framefold.params.reweight import ReweightParams

CATEGORIES = [f"{group:02d}{sub:02d}" for group in range(4) for sub in range(5)]
PARAMS = ReweightParams(
    method="formula",
    a=[0.5, 1, 2, 3, 5],
    b=[0.5, 1],
    tau=[0.1, 0.2, 0.3, 0.5, 0.75, 1],
    bound=0.7,
    steps=5,
    sweeps=3,
    cross_fit_folds=5,
    min_gain=0.0,
    seed=0,
)
METHODS = ("formula", "logit_adjustment", "search")


def noise(seed, n=200):
    """Predictions that say nothing, class sizes that mean nothing: whatever a fit gains here is luck."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(20), size=n)
    return probs, rng.integers(0, 20, n), np.arange(n), rng.integers(1, 200, 20).astype(float)


def long_tailed(seed, n=3000):
    """Probabilities of a model that learnt the long tail too well: doubtful videos are pulled to the large classes."""
    rng = np.random.default_rng(seed)
    sizes = np.ceil(1000 / np.arange(1, 21) ** 1.5)
    labels = rng.choice(20, size=n, p=sizes / sizes.sum())
    evidence = rng.normal(size=(n, 20)) + 2.5 * np.eye(20)[labels]
    logits = 2.5 * evidence + 2 * np.log(sizes / sizes.sum())
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    return probs / probs.sum(axis=1, keepdims=True), labels, np.arange(n), sizes


@pytest.fixture(scope="module")
def fits_of_noise():
    return [fit_reweighting(*noise(seed), CATEGORIES, PARAMS) for seed in range(25)]


@pytest.mark.parametrize("method", METHODS)
def test_gain_on_noise_is_claimed_in_sample_but_not_cross_fitted(fits_of_noise, method):
    """The gain that counts is the cross-fitted one; that in sample is the optimism that it must not contain."""
    in_sample, honest = (
        np.mean([fit["methods"][method][name] for fit in fits_of_noise])
        for name in ("in_sample_gain", "cross_fitted_gain")
    )
    assert in_sample > 0.005
    assert honest < 0.001


def test_search_is_the_most_optimistic_of_the_methods(fits_of_noise):
    """A weight for each class fits more luck than one or two numbers for all."""
    gains = {m: np.mean([fit["methods"][m]["in_sample_gain"] for fit in fits_of_noise]) for m in METHODS}
    assert gains["search"] > 2 * max(gains["formula"], gains["logit_adjustment"])


def test_a_fit_that_sees_the_part_it_is_judged_on_is_caught():
    """Planted leak: cross-fitting that fits on all videos reports the in-sample optimism as a gain."""
    probs, labels, groups, _ = noise(0)
    parts = deal_parts(labels, groups, 5, seed=0)

    def accuracy(leak):
        def fit(rows):
            return dict.fromkeys(range(len(labels)) if leak else rows.tolist())  # remembers the videos it saw

        def predict(rows, seen):
            return np.where([row in seen for row in rows.tolist()], labels[rows], probs[rows].argmax(axis=1))

        return (cross_fitted(parts, fit, predict) == labels).mean()

    assert accuracy(leak=True) == 1.0
    assert accuracy(leak=False) < 0.2


def test_rare_classes_gain_where_the_prior_drowned_them():
    data = long_tailed(0)
    fit = fit_reweighting(*data, CATEGORIES, PARAMS)
    assert fit["used"]
    assert fit["cross_fitted_gain"] > 0
    assert fit["weights"][19] > fit["weights"][0] >= 1
    assert fit["weights"] == class_weights(data[3], fit["a"], fit["b"]).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_undoes_a_prior_that_was_learnt_too_well(method):
    data = long_tailed(0)
    fit = fit_reweighting(*data, CATEGORIES, PARAMS.model_copy(update={"method": method}))
    assert fit["used"]
    assert fit["cross_fitted_gain"] == fit["methods"][method]["cross_fitted_gain"] > 0
    predicted = (data[0] * np.array(fit["weights"])).argmax(axis=1)
    assert official_scores(data[1], predicted, CATEGORIES)["score"] == pytest.approx(fit["out_of_fold_after"])


def test_logit_adjustment_is_the_closed_form_on_logits():
    """argmax of probs x prior^-tau is argmax of logits - tau log prior, and the weights themselves are prior^-tau."""
    rng = np.random.default_rng(0)
    logits, sizes = rng.normal(size=(500, 20)), rng.integers(1, 300, 20).astype(float)
    weights = prior_weights(sizes, 0.6)
    adjusted = logits - 0.6 * np.log(sizes / sizes.sum())
    assert np.array_equal((softmax(logits) * weights).argmax(axis=1), adjusted.argmax(axis=1))
    assert weights[3] * (sizes[3] / sizes.sum()) ** 0.6 == pytest.approx(1)
    assert reweighted_probs(logits, weights) == pytest.approx(softmax(adjusted))


def test_logit_adjustment_finds_the_tau_that_was_planted():
    """Logits of an even-handed model plus log prior: tau 1 takes it off again."""
    rng = np.random.default_rng(1)
    sizes = np.ceil(1000 / np.arange(1, 21) ** 1.5)
    labels = rng.integers(0, 20, 4000)  # balanced, where the model believes in the tail
    logits = 1.5 * (rng.normal(size=(4000, 20)) + 2 * np.eye(20)[labels]) + np.log(sizes / sizes.sum())
    params = PARAMS.model_copy(update={"method": "logit_adjustment"})
    assert fit_reweighting(softmax(logits), labels, np.arange(4000), sizes, CATEGORIES, params)["tau"] == 1


def test_without_a_method_weights_are_one():
    fit = fit_reweighting(*long_tailed(0), CATEGORIES, PARAMS.model_copy(update={"method": "none"}))
    assert fit["weights"] == [1.0] * 20
    assert not fit["used"]


def test_weights_stay_one_when_the_gain_is_too_small():
    params = PARAMS.model_copy(update={"min_gain": 0.9})
    fit = fit_reweighting(*long_tailed(0), CATEGORIES, params)
    assert not fit["used"]
    assert fit["weights"] == [1.0] * 20


@pytest.mark.parametrize("method", METHODS)
def test_without_a_least_gain_the_weights_are_used_whatever_they_gain(method):
    refused, forced = (
        fit_reweighting(*noise(1), CATEGORIES, PARAMS.model_copy(update={"method": method, "min_gain": least}))
        for least in (0.9, None)
    )
    assert (refused["used"], forced["used"]) == (False, True)
    assert refused["cross_fitted_gain"] == forced["cross_fitted_gain"]
    assert set(forced["weights"]) != {1.0}


def test_duplicates_are_never_split_between_fit_and_judgement():
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(0, 60, 200), rng.integers(0, 5, 200)
    parts = deal_parts(labels, groups, 5, seed=0)
    assert all(len(set(parts[groups == group])) == 1 for group in np.unique(groups))


def test_parts_hold_every_class_in_equal_share():
    labels = np.repeat(np.arange(4), 25)
    parts = deal_parts(labels, np.arange(100), 5, seed=1)
    assert [[(parts[labels == c] == p).sum() for p in range(5)] for c in range(4)] == [[5] * 5] * 4


@pytest.mark.parametrize(("b", "expected"), [(0.5, [3, 2, 1.4, 1.2]), (1.0, [3, 1.5, 1.08, 1.02])])
def test_class_weights_by_formula_are_those_by_hand(b, expected):
    assert class_weights(np.array([1, 4, 25, 100]), 2.0, b) == pytest.approx(np.array(expected))


def test_sizes_of_classes_leave_the_holdout_out():
    """A class of the holdout alone has size 0, as has one without videos."""
    labels, folds = np.array([0, 1, 1, 0, 2, 1]), np.array([1, 0, HOLDOUT, 0, HOLDOUT, 1])
    labeled = LabeledVideos(list("abcdef"), labels, np.arange(6), folds, CATEGORIES[:4])
    assert labeled.class_sizes().tolist() == [2, 2, 0, 0]


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_a_class_without_training_videos_has_a_finite_weight(size):
    assert class_weights(np.array([size]), 2.0, 1.0).tolist() == [3.0]


@pytest.mark.parametrize("method", METHODS)
def test_weights_fitted_on_all_rows_are_those_of_the_whole_fit(method):
    probs, labels, groups, sizes = long_tailed(0)
    params = PARAMS.model_copy(update={"method": method})
    fit = fit_reweighting(probs, labels, groups, sizes, CATEGORIES, params)
    assert fit["used"]
    assert weights_fitted_on(np.arange(3000), probs, labels, sizes, CATEGORIES, params).tolist() == fit["weights"]


@pytest.mark.parametrize("method", METHODS)
def test_weights_fitted_on_some_rows_know_nothing_of_the_others(method):
    probs, labels, _, sizes = long_tailed(0)
    rows, other_probs, other_labels = np.arange(0, 3000, 2), probs.copy(), labels.copy()
    other_probs[1::2], other_labels[1::2] = probs[1::2][:, ::-1], 19 - labels[1::2]
    params = PARAMS.model_copy(update={"method": method})
    weights = weights_fitted_on(rows, probs, labels, sizes, CATEGORIES, params)
    assert weights.tolist() == weights_fitted_on(rows, other_probs, other_labels, sizes, CATEGORIES, params).tolist()
    assert weights.min() < weights.max()


def test_no_method_gives_weights_of_one():
    probs, labels, _, sizes = long_tailed(0)
    params = PARAMS.model_copy(update={"method": "none"})
    assert set(weights_fitted_on(np.arange(100), probs, labels, sizes, CATEGORIES, params)) == {1.0}
