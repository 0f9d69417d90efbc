"""Weights of a blend, against brute force: .venv/bin/pytest tests/test_blend_weights.py"""

import itertools

import numpy as np
import pytest

from framefold.evaluation.metrics import official_scores
from framefold.inference.blend_weights import ROUNDS, greedy_weights, shifted_weights, simplex_weights
from framefold.inference.predictions import softmax

CATEGORIES = [f"{group:02d}{sub:02d}" for group in range(2) for sub in range(3)]
METHODS = [simplex_weights, greedy_weights, shifted_weights]


def score_of(strengths, seed=0, n=400):
    """Official score of the blend of members that know the label this well, by weights; deterministic."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, n)
    members = [softmax(rng.normal(size=(n, 6)) + strength * np.eye(6)[labels]) for strength in strengths]

    def score(weights):
        mixed = sum(weight * probs for weight, probs in zip(weights, members, strict=True))
        return official_scores(labels, mixed.argmax(axis=1), CATEGORIES)["score"]

    return score


def points(n, steps):
    """Every point of the simplex whose weights are multiples of 1 / steps."""
    return [np.array(c) / steps for c in itertools.product(range(steps + 1), repeat=n) if sum(c) == steps]


def test_two_and_three_members_get_the_best_point_of_the_grid():
    for strengths, steps in (([2.0, 1.0], 20), ([1.5, 1.0, 0.5], 10)):
        score = score_of(strengths)
        assert score(simplex_weights(len(strengths), score)) == max(map(score, points(len(strengths), steps)))


def test_with_more_members_the_search_comes_near_brute_force():
    """Five members, a grid of 126 points: the search is at most a tenth of a point below its best, on average."""
    short = []
    for seed in range(4):
        score = score_of([2.0, 1.5, 1.0, 0.5, 0.0], seed)
        found = simplex_weights(5, score)
        assert sum(found) == pytest.approx(1)
        assert min(found) >= 0
        short.append(max(map(score, points(5, 5))) - score(found))
        assert score(found) >= score((0.2,) * 5)
    assert np.mean(short) < 0.001


def test_the_search_finds_the_top_of_a_smooth_hill():
    """-|w - target|^2 has one peak on the simplex: the search ends within its last step of it."""
    target = np.array([0.4, 0.3, 0.2, 0.1])
    found = shifted_weights(4, lambda weights: -float(((np.array(weights) - target) ** 2).sum()))
    assert np.abs(np.array(found) - target).max() <= 1 / 40 + 1e-9


def test_greedy_is_selection_with_replacement():
    """The same picks as a plain loop over bags of member numbers."""
    score = score_of([1.5, 1.4, 1.0, 0.2], seed=3)
    bag, trace = [], []
    for _ in range(ROUNDS):
        tried = {m: score([([*bag, m].count(i)) / (len(bag) + 1) for i in range(4)]) for m in range(4)}
        top = max(tried.values())
        bag.append(min((m for m in tried if tried[m] == top), key=lambda m: (bag.count(m), m)))
        trace.append((top, list(bag)))
    reached, chosen = max(trace, key=lambda one: one[0])
    assert reached > score((0.25,) * 4)
    assert greedy_weights(4, score) == tuple(chosen.count(i) / len(chosen) for i in range(4))


@pytest.mark.parametrize("find", METHODS)
@pytest.mark.parametrize("n", [2, 3])
def test_equal_members_get_equal_weights(find, n):
    alone = score_of([1.0])
    assert find(n, lambda weights: alone((sum(weights) / sum(weights),))) == (1 / n,) * n


@pytest.mark.parametrize("find", METHODS)
def test_weights_are_shares(find):
    found = find(3, score_of([1.0, 0.8, 0.6]))
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0
