"""The blend: .venv/bin/pytest tests/test_ensembling.py"""

import numpy as np
import pytest

from framefold.evaluation.metrics import official_scores
from framefold.inference.blend_weights import simplex_grid
from framefold.inference.ensembling import (
    OutOfFold,
    best_member,
    blend,
    cross_fitted_blend,
    fit_blend,
    reweighted_probs,
)
from framefold.inference.predictions import softmax

CATEGORIES = [f"{group:02d}{sub:02d}" for group in range(4) for sub in range(5)]


def member(labels, strength, seed):
    rng = np.random.default_rng(seed)
    return softmax(rng.normal(size=(len(labels), 20)) + strength * np.eye(20)[labels])


def plain(members, labels, how="probs"):
    """Without class weights."""
    return OutOfFold([lambda rows, probs=probs: probs for probs in members], labels, parts_of(labels), CATEGORIES, how)


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 20, 1500)


def parts_of(labels):
    return np.arange(len(labels)) % 5


@pytest.mark.parametrize("how", ["probs", "logits"])
def test_a_blend_of_independent_models_beats_each_of_them(labels, how):
    members = [member(labels, 2.0, seed) for seed in (1, 2)]
    alone = [official_scores(labels, m.argmax(axis=1), CATEGORIES)["score"] for m in members]
    fit = fit_blend(plain(members, labels, how), "simplex", 0.0)
    both = official_scores(labels, blend(members, fit["weights"], how).argmax(axis=1), CATEGORIES)["score"]
    assert both > max(alone) + 0.05


@pytest.mark.parametrize("method", ["simplex", "greedy"])
def test_fitting_gives_a_useless_model_little_weight(labels, method):
    members = [member(labels, 2.5, 1), member(labels, 0.0, 2)]
    fit = fit_blend(plain(members, labels), method, 0.0)
    assert fit["used"]
    assert fit["weights"][0] > 0.6
    assert fit["cross_fitted_gain"] > 0.01


@pytest.mark.parametrize("method", ["simplex", "greedy"])
def test_fitting_that_does_not_help_leaves_equal_weights(labels, method):
    """Members that are noise: the best weights in sample gain, the cross-fitted estimate mostly says no."""
    refused = 0
    for seed in range(8):
        members = [member(labels[:200], 0.0, 10 + seed), member(labels[:200], 0.0, 30 + seed)]
        fit = fit_blend(plain(members, labels[:200]), method, 0.0)
        assert (fit["weights"] == [0.5, 0.5]) or fit["used"]
        refused += not fit["used"]
    assert refused >= 4


@pytest.mark.parametrize("method", ["simplex", "greedy"])
def test_without_a_least_gain_fitted_weights_are_used_whatever_they_gain(labels, method):
    members = plain([member(labels, 2.5, 1), member(labels, 0.0, 2)], labels)
    refused, forced = (fit_blend(members, method, least) for least in (0.9, None))
    assert (refused["used"], refused["weights"]) == (False, [0.5, 0.5])
    assert (forced["used"], forced["weights"]) == (True, forced["fitted"])
    assert refused["fitted"] == forced["fitted"] != [0.5, 0.5]


@pytest.mark.medium
@pytest.mark.parametrize("method", ["simplex", "greedy"])
def test_gain_on_noise_is_claimed_in_sample_but_not_cross_fitted(method):
    """40 draws of three members that know nothing: four points gained in sample, cross-fitted none beyond chance."""
    fits = []
    for seed in range(40):
        few = np.random.default_rng(seed).integers(0, 20, 100)
        members = [member(few, 0.0, 1000 * number + seed) for number in (1, 2, 3)]
        fits.append(fit_blend(plain(members, few), method, 0.0))
    in_sample, honest = ([fit[name] for fit in fits] for name in ("in_sample_gain", "cross_fitted_gain"))
    assert np.mean(in_sample) > 0.03
    assert np.mean(honest) < 2 * np.std(honest) / len(honest) ** 0.5


@pytest.mark.parametrize("used", [True, False])
def test_every_part_is_judged_by_what_was_fitted_on_the_others(labels, used):
    """Class weights and blend weights against a plain loop, and so are both terms of the gain."""
    probs, parts = [member(labels, 1.0, 1), member(labels, 2.0, 2)], parts_of(labels)
    asked = []

    def reweighted(own):
        def member(rows):
            asked.append(set(rows.tolist()))
            return own * (1 + np.bincount(labels[rows], minlength=20) / len(rows))

        return member

    def looped(weights_of):
        scores = np.empty((len(labels), 20))
        for part in range(5):
            others, inside = np.flatnonzero(parts != part), parts == part
            members = [reweighted(own)(others) for own in probs]
            scores[inside] = blend([m[inside] for m in members], weights_of(members, others), "probs")
        return scores

    def fitted(members, rows):
        def score(weights):
            predicted = blend([m[rows] for m in members], weights, "probs").argmax(axis=1)
            return official_scores(labels[rows], predicted, CATEGORIES)["score"]

        return max(simplex_grid(2), key=score)

    looped_scores = {True: looped(fitted), False: looped(lambda members, rows: (0.5, 0.5))}
    asked.clear()
    out_of_fold = OutOfFold([reweighted(own) for own in probs], labels, parts, CATEGORIES, "probs")
    found = cross_fitted_blend(out_of_fold, "simplex", used)
    np.testing.assert_allclose(found, looped_scores[used], atol=1e-12)
    assert all(any(seen.isdisjoint(np.flatnonzero(parts == part)) for seen in asked) for part in range(5))
    a, b = (official_scores(labels, looped_scores[u].argmax(axis=1), CATEGORIES)["score"] for u in (True, False))
    assert fit_blend(out_of_fold, "simplex", 0.0)["cross_fitted_gain"] == pytest.approx(a - b, abs=1e-12)


def test_equal_weights_are_those_of_no_fit(labels):
    members = [member(labels, 2.5, 1), member(labels, 0.0, 2)]
    fit = fit_blend(plain(members, labels), "equal", 0.0)
    assert fit["weights"] == [0.5, 0.5]
    assert not fit["used"]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_weights_sum_to_one_and_equal_ones_come_first(n):
    points = simplex_grid(n)
    assert points[0] == (1 / n,) * n
    assert all(abs(sum(point) - 1) < 1e-9 and min(point) >= 0 for point in points)


def test_class_weights_reach_the_probabilities():
    probs = reweighted_probs(np.zeros((1, 2)), np.array([1.0, 3.0]))
    assert probs.tolist() == [[0.25, 0.75]]


def test_blend_of_logits_is_the_geometric_mean():
    """Of a video whose first class the arithmetic mean prefers; a probability of 0 rules a class out, finitely."""
    p, q, weights = np.array([[0.001, 0.6, 0.399]]), np.array([[0.64, 0.31, 0.05]]), [0.3, 0.7]
    products = p**0.3 * q**0.7
    found = blend([p, q], weights, "logits")
    assert softmax(found) == pytest.approx(products / products.sum())
    assert (found.argmax(), blend([p, q], weights, "probs").argmax()) == (1, 0)
    excluded = blend([np.array([[0.0, 0.4, 0.6]]), q], weights, "logits")
    assert np.isfinite(excluded).all()
    assert softmax(excluded)[0, 0] < 0.001


def test_blend_of_probs_is_the_arithmetic_mean():
    found = blend([np.array([[0.2, 0.8]]), np.array([[0.7, 0.3]])], [0.3, 0.7], "probs")
    assert found == pytest.approx(np.array([[0.55, 0.45]]))


def test_best_member_is_the_best_on_its_own_fold():
    assert best_member({("dual_stream", 0): 0.5, ("single_stream", 1): 0.6, ("single_stream", 0): 0.4}) == (
        "single_stream",
        1,
    )
