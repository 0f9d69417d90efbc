"""Intervals of the scores: .venv/bin/pytest tests/test_bootstrap.py"""

import time

import numpy as np

from framefold.evaluation.bootstrap import percentile_interval, resampled_counts
from framefold.evaluation.metrics import official_scores, paired_difference, score_entry, score_interval

CATEGORIES = [f"{group:02d}{sub:02d}" for group in range(4) for sub in range(5)]


def noisy(truth, accuracy, rng):
    return np.where(rng.random(len(truth)) < accuracy, truth, rng.integers(0, len(CATEGORIES), len(truth)))


def test_counting_outcomes_equals_resampling_the_samples():
    """The multinomial short cut gives the interval of the textbook bootstrap."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 20, 300)
    predicted = noisy(truth, 0.6, rng)
    rows = rng.integers(0, 300, (600, 300))
    plain = percentile_interval(np.array([official_scores(truth[r], predicted[r], CATEGORIES)["score"] for r in rows]))
    fast = score_interval(truth, predicted, CATEGORIES, bootstrap=2000, seed=1)
    assert np.abs(np.subtract(plain, fast)).max() < 0.012


def test_interval_covers_the_true_score_about_95_times_in_100():
    """Over repeated draws of a test set from one known population; micro F1, whose true value is known."""
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        counts = np.array([(hits := rng.binomial(400, 0.7)), 400 - hits])
        low, high = percentile_interval(np.concatenate(list(resampled_counts(counts, 400, seed)))[:, 0] / 400)
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_same_seed_gives_the_same_interval_and_contains_the_score():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 20, 500)
    scores = np.eye(20)[noisy(truth, 0.6, rng)]
    entry = score_entry(truth, scores, CATEGORIES, bootstrap=300, seed=3)
    assert entry == score_entry(truth, scores, CATEGORIES, bootstrap=300, seed=3)
    assert entry["score_low"] < entry["score"] < entry["score_high"]


def test_paired_difference_is_sharper_than_two_separate_intervals():
    """Two models that err on the same videos: pairing shows a small gain that separate intervals would hide."""
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 20, 1500)
    weaker = noisy(truth, 0.6, rng)
    better = np.where(rng.random(1500) < 0.06, truth, weaker)
    pair = paired_difference(truth, better, weaker, CATEGORIES, bootstrap=500, seed=0)
    separate = [score_interval(truth, p, CATEGORIES, bootstrap=500, seed=0) for p in (better, weaker)]
    assert pair["low"] > 0
    assert separate[0][0] < separate[1][1]
    assert (
        pair["difference"]
        == official_scores(truth, better, CATEGORIES)["score"] - (official_scores(truth, weaker, CATEGORIES)["score"])
    )


def test_equal_predictions_differ_by_nothing():
    truth = np.arange(20)
    pair = paired_difference(truth, truth[::-1], truth[::-1], CATEGORIES, bootstrap=50, seed=0)
    assert (pair["difference"], pair["low"], pair["high"]) == (0, 0, 0)


def test_25_000_samples_of_200_classes_take_seconds():
    rng = np.random.default_rng(5)
    categories = [f"{i // 10:02d}{i % 10:02d}" for i in range(200)]
    truth = rng.integers(0, 200, 25_000)
    started = time.perf_counter()
    score_interval(truth, np.where(rng.random(25_000) < 0.7, truth, rng.integers(0, 200, 25_000)), categories, 1000, 0)
    assert time.perf_counter() - started < 15


def plain_difference(truth, first, second, rows):
    """The mean score of some runs minus that of others on resampled videos, run by run."""

    def mean(runs):
        return np.mean([official_scores(truth[rows], labels[rows], CATEGORIES)["score"] for labels in runs])

    return mean(first) - mean(second)


def test_runs_with_several_seeds_are_compared_on_the_same_resampled_videos():
    """The multinomial over (truth, labels of every run) against a plain loop that resamples videos."""
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 20, 300)
    easy = rng.random(300) < 0.5
    first = np.stack([np.where(easy, truth, noisy(truth, 0.4, rng)) for _ in range(3)])
    second = np.stack([np.where(easy, truth, noisy(truth, 0.2, rng)) for _ in range(3)])
    pair = paired_difference(truth, first, second, CATEGORIES, bootstrap=2000, seed=1)
    drawn = [plain_difference(truth, first, second, rng.integers(0, 300, 300)) for _ in range(600)]
    assert abs(pair["difference"] - plain_difference(truth, first, second, np.arange(300))) < 1e-12
    assert np.abs(np.subtract(percentile_interval(np.array(drawn)), (pair["low"], pair["high"]))).max() < 0.012


def test_one_run_given_thrice_is_one_run():
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 20, 200)
    first, second = noisy(truth, 0.6, rng), noisy(truth, 0.5, rng)
    one = paired_difference(truth, first, second, CATEGORIES, bootstrap=200, seed=0)
    thrice = paired_difference(truth, np.stack([first] * 3), np.stack([second] * 3), CATEGORIES, bootstrap=200, seed=0)
    assert all(abs(one[name] - thrice[name]) < 1e-12 for name in one)


def test_pairing_by_video_holds_over_seeds():
    """Runs that err on the same videos: resampling each side by itself would hide the gain."""
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 20, 1500)
    weaker = noisy(truth, 0.6, rng)
    seconds = np.stack([weaker] * 3)
    firsts = np.stack([np.where(rng.random(1500) < 0.04, truth, weaker) for _ in range(3)])
    pair = paired_difference(truth, firsts, seconds, CATEGORIES, bootstrap=500, seed=0)
    alone = [score_interval(truth, side, CATEGORIES, bootstrap=500, seed=0) for side in (firsts, seconds)]
    assert pair["low"] > 0
    assert alone[0][0] < alone[1][1]
