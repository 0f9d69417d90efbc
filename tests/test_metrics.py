"""The official score: .venv/bin/pytest tests/test_metrics.py"""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from framefold.errors import UserError
from framefold.evaluation.metrics import level1_of, official_scores, score_entry

CATEGORIES = [f"{group:02d}{sub:02d}" for group in range(5) for sub in range(6)]


def sklearn_scores(truth, predicted):
    ids = [CATEGORIES[t] for t in truth], [CATEGORIES[p] for p in predicted]
    groups = [[c[:2] for c in column] for column in ids]
    parts = {
        f"{level}_{how}": f1_score(*pair, average=how)
        for level, pair in (("lv1", groups), ("lv2", ids))
        for how in ("micro", "macro")
    }
    return {"score": np.mean(list(parts.values()))} | parts


@pytest.mark.parametrize("seed", range(10))
def test_every_part_equals_sklearn(seed):
    """Also where classes are missing from the truth, from the prediction, or from both."""
    rng = np.random.default_rng(seed)
    known = rng.choice(30, size=rng.integers(2, 30), replace=False)
    truth, predicted = rng.choice(known, size=80), rng.choice(30, size=80) if seed % 2 else rng.choice(known, size=80)
    ours, theirs = official_scores(truth, predicted, CATEGORIES), sklearn_scores(truth, predicted)
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[name] - theirs[name]) < 1e-12 for name in theirs)


def test_right_group_with_wrong_category_counts_at_level_1_only():
    truth, predicted = np.array([0, 1, 6, 7]), np.array([1, 0, 7, 6])
    parts = official_scores(truth, predicted, CATEGORIES)
    assert (parts["lv1_micro"], parts["lv1_macro"], parts["lv2_micro"], parts["lv2_macro"]) == (1, 1, 0, 0)
    assert level1_of(["0101", "0103", "0701"]).tolist() == [0, 0, 1]


def test_top5_counts_the_truth_among_the_five_best():
    scores = np.tile(np.arange(30.0), (3, 1))
    entry = score_entry(np.array([29, 25, 24]), scores, CATEGORIES, bootstrap=20, seed=0)
    assert (entry["top1"], entry["top5"], entry["n"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 3)


def test_a_true_category_that_the_model_does_not_know_is_a_miss_not_a_crash():
    truth, scores = np.array([0, 29]), np.eye(29)[[0, 1]]
    entry = score_entry(truth, scores, CATEGORIES, bootstrap=20, seed=0)
    assert (entry["lv2_micro"], entry["top5"]) == (0.5, 0.5)


def test_nan_predictions_are_refused_with_their_row():
    scores = np.zeros((2, 30))
    scores[1, 3] = np.nan
    with pytest.raises(UserError, match="row 1"):
        score_entry(np.array([0, 1]), scores, CATEGORIES, bootstrap=20, seed=0)
