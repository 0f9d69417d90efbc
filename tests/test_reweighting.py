"""Class weights: .venv/bin/pytest tests/test_reweighting.py"""

import numpy as np
import pytest

from framefold.inference.cross_fitting import cross_fitted_labels, deal_parts
from framefold.inference.reweighting import class_weights, fit_reweighting
from framefold.params.reweight import ReweightParams

CATEGORIES = [f"{group:02d}{sub:02d}" for group in range(4) for sub in range(5)]
PARAMS = ReweightParams(a=[0.5, 1, 2, 3, 5], b=[0.5, 1], cross_fit_folds=5, min_gain=0.0, seed=0)


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


def test_gain_on_noise_is_claimed_in_sample_but_not_cross_fitted():
    """The reported gain is the cross-fitted one; the in-sample gain is the optimism that it must not contain."""
    fits = [fit_reweighting(*noise(seed), CATEGORIES, PARAMS) for seed in range(25)]
    in_sample = np.mean([fit["out_of_fold_after"] - fit["out_of_fold_before"] for fit in fits])
    honest = np.mean([fit["cross_fitted_gain"] for fit in fits])
    assert in_sample > 0.005
    assert honest < 0.001


def test_a_fit_that_sees_the_part_it_is_judged_on_is_caught():
    """Planted leak: cross-fitting that fits on all videos reports the in-sample optimism as a gain."""
    probs, labels, groups, _ = noise(0)
    parts = deal_parts(labels, groups, 5, seed=0)

    def accuracy(leak):
        def fit(rows):
            return dict.fromkeys(range(len(labels)) if leak else rows.tolist())  # remembers the videos it saw

        def predict(rows, seen):
            return np.where([row in seen for row in rows.tolist()], labels[rows], probs[rows].argmax(axis=1))

        return (cross_fitted_labels(parts, fit, predict) == labels).mean()

    assert accuracy(leak=True) == 1.0
    assert accuracy(leak=False) < 0.2


def test_rare_classes_gain_where_the_prior_drowned_them():
    data = long_tailed(0)
    fit = fit_reweighting(*data, CATEGORIES, PARAMS)
    assert fit["used"]
    assert fit["cross_fitted_gain"] > 0
    assert fit["weights"][19] > fit["weights"][0] >= 1
    assert fit["weights"] == class_weights(data[3], fit["a"], fit["b"]).tolist()


def test_weights_stay_one_when_the_gain_is_too_small():
    params = PARAMS.model_copy(update={"min_gain": 0.9})
    fit = fit_reweighting(*long_tailed(0), CATEGORIES, params)
    assert not fit["used"]
    assert fit["weights"] == [1.0] * 20


def test_duplicates_are_never_split_between_fit_and_judgement():
    rng = np.random.default_rng(0)
    groups, labels = rng.integers(0, 60, 200), rng.integers(0, 5, 200)
    parts = deal_parts(labels, groups, 5, seed=0)
    assert all(len(set(parts[groups == group])) == 1 for group in np.unique(groups))


def test_parts_hold_every_class_in_equal_share():
    labels = np.repeat(np.arange(4), 25)
    parts = deal_parts(labels, np.arange(100), 5, seed=1)
    assert [[(parts[labels == c] == p).sum() for p in range(5)] for c in range(4)] == [[5] * 5] * 4


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_a_class_without_training_videos_has_a_finite_weight(size):
    assert class_weights(np.array([size]), 2.0, 1.0).tolist() == [3.0]
