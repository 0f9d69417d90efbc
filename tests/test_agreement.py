"""How optimistic the out-of-fold score is: python -m pytest tests/test_agreement.py"""

import numpy as np
import pytest

from framefold.evaluation.agreement import optimism
from framefold.evaluation.metrics import official_scores

CATEGORIES = [f"{group:02d}{number:02d}" for group in range(4) for number in range(5)]
ODDS = np.arange(1, len(CATEGORIES) + 1) ** -1.0
MODELS = 3


def labelled(rng, size):
    return rng.choice(len(CATEGORIES), size, p=ODDS / ODDS.sum())


def guesses(rng, truth, accuracy):
    return np.where(rng.random(len(truth)) < accuracy, truth, labelled(rng, len(truth)))


def measured(seed, size=150, accuracy_out_of_fold=0.6, bootstrap=200):
    rng = np.random.default_rng(seed)
    validation, truth = labelled(rng, 1000), labelled(rng, size)
    predicted = [guesses(rng, truth, 0.6) for _ in range(MODELS)]
    out_of_fold = validation, guesses(rng, validation, accuracy_out_of_fold)
    return optimism(out_of_fold, truth, predicted, CATEGORIES, bootstrap, 0), out_of_fold, truth, predicted


def test_an_honest_estimate_is_mostly_within_its_interval():
    entries = [measured(seed)[0] for seed in range(60)]
    assert sum(entry["low"] <= 0 <= entry["high"] for entry in entries) >= 52  # 57 on average; fewer once in 1,000


def test_an_optimistic_one_is_found_out():
    entry, *_ = measured(0, size=1000, accuracy_out_of_fold=0.75)
    assert 0 < entry["low"] < entry["difference"] < entry["high"]


def test_fewer_samples_alone_are_no_optimism():
    """Macro F1 over few samples is another number than over many; the mean difference must not show it."""
    small = [measured(seed, size=60)[0]["difference"] for seed in range(60)]
    assert abs(np.mean(small)) < 3 * np.std(small) / np.sqrt(len(small))


def test_the_single_models_score_is_their_mean():
    entry, _, truth, predicted = measured(1)
    scores = [official_scores(truth, labels, CATEGORIES)["score"] for labels in predicted]
    assert entry["single_models"] == pytest.approx(np.mean(scores))
    assert entry["models"] == MODELS


def test_with_as_many_samples_the_expected_score_is_nearly_the_out_of_fold_score():
    entry, out_of_fold, *_ = measured(2, size=1000, bootstrap=1000)
    assert entry["expected"] == pytest.approx(official_scores(*out_of_fold, CATEGORIES)["score"], abs=0.003)


def test_a_part_that_has_every_class_is_no_optimism():
    """The holdout is dealt class by class, so that it lacks fewer of them than as many videos drawn freely would."""
    honest = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        validation = labelled(rng, 1000)
        truth = rng.permutation(
            np.repeat(np.arange(len(CATEGORIES)), np.maximum(1, 60 * ODDS / ODDS.sum()).astype(int))
        )
        predicted = [guesses(rng, truth, 0.6) for _ in range(MODELS)]
        entry = optimism((validation, guesses(rng, validation, 0.6)), truth, predicted, CATEGORIES, 200, 0)
        honest.append(entry["difference"])
    assert abs(np.mean(honest)) < 3 * np.std(honest) / np.sqrt(len(honest))
