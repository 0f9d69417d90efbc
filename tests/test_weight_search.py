"""Coordinate ascent over class weights, against brute force: .venv/bin/pytest tests/test_weight_search.py"""

import itertools

import numpy as np
import pytest

from framefold.evaluation.metrics import official_scores
from framefold.inference.predictions import softmax
from framefold.inference.weight_search import _Search, search_weights

THREE = ["0101", "0102", "0201"]
BOUND, STEPS = 0.8, 2
GRID = np.exp(np.linspace(-BOUND, BOUND, 2 * STEPS + 1))


def videos(seed: int, n: int = 60, categories: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities drawn towards the classes in front, and the labels."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(categories, size=n, p=np.arange(1, categories + 1) / np.arange(1, categories + 1).sum())
    return softmax(rng.normal(size=(n, categories)) + np.eye(categories)[labels] - np.arange(categories)), labels


def score(probs, labels, weights, categories=THREE):
    return official_scores(labels, (probs * weights).argmax(axis=1), categories)["score"]


def brute_force(probs, labels):
    """The best score that any weights of the grid have, up to a common factor."""
    return max(score(probs, labels, np.array(weights)) for weights in itertools.product(GRID, repeat=3))


def test_it_reaches_what_brute_force_finds_on_three_classes():
    """Ascent may end on a lower peak: it does so seldom, and never far away."""
    found = [score(*videos(seed), search_weights(*videos(seed), THREE, BOUND, STEPS, 10)) for seed in range(20)]
    best = [brute_force(*videos(seed)) for seed in range(20)]
    before = [score(*videos(seed), np.ones(3)) for seed in range(20)]
    assert all(one <= other + 1e-12 for one, other in zip(found, best, strict=True))
    assert np.isclose(found, best).sum() >= 12
    assert np.mean(best) - np.mean(found) < 0.1 * (np.mean(best) - np.mean(before))


@pytest.mark.parametrize("seed", range(6))
def test_it_ends_where_no_single_weight_can_gain(seed):
    probs, labels = videos(seed)
    weights = search_weights(probs, labels, THREE, BOUND, STEPS, 50)
    reached = score(probs, labels, weights)
    for number, value in itertools.product(range(3), GRID):
        assert score(probs, labels, np.where(np.arange(3) == number, value, weights)) <= reached + 1e-12
    assert np.abs(np.log(weights)).max() <= BOUND + 1e-9


@pytest.mark.parametrize("ties", [False, True])
def test_scores_from_moved_counts_are_those_of_whole_predictions(ties):
    """Every candidate of every class, after other weights were changed; with ties argmax takes the first class."""
    categories = [f"{c // 3:02d}{c % 3:02d}" for c in range(9)]
    probs, labels = videos(3, n=300, categories=9)
    if ties:
        probs = np.round(probs, 1) + 0.05
    search = _Search(probs, labels, categories)
    candidates = np.array([0.5, 1.0, 2.0])
    for number in range(9):
        tried = [np.where(np.arange(9) == number, value, search.weights) for value in candidates]
        whole = [score(probs, labels, weights, categories) for weights in tried]
        assert search.scores(number, candidates) == pytest.approx(whole, abs=1e-12)
        search._set(number, float(candidates[number % 3]))
    assert np.array_equal(search.first, (probs * search.weights).argmax(axis=1))


def test_the_same_input_gives_the_same_weights_and_never_a_lower_score():
    categories = [f"{c // 3:02d}{c % 3:02d}" for c in range(9)]
    for seed in range(5):
        probs, labels = videos(seed, n=200, categories=9)
        first = search_weights(probs, labels, categories, BOUND, STEPS, 3)
        assert np.array_equal(first, search_weights(probs, labels, categories, BOUND, STEPS, 3))
        assert score(probs, labels, first, categories) >= score(probs, labels, np.ones(9), categories)
