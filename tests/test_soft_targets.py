"""Soft labels as training uses them. Run: .venv/bin/python -m pytest tests/test_soft_targets.py"""

from pathlib import Path

import numpy as np
import pytest

from framefold.data.array_files import ArrayFile
from framefold.data.soft_targets import NO_CLASS, SoftTargets, class_weights, label_weights, used_classes
from framefold.params.labels import LabelParams

OFF = LabelParams(hard=0, temperature=1, min_confidence=0, balance=0)


def params(**changes: float) -> LabelParams:
    return OFF.model_copy(update=changes)


@pytest.fixture
def soft(tmp_path: Path) -> ArrayFile:
    """Labels of 40 videos, every seventh of which has none."""
    probs = np.random.default_rng(0).dirichlet(np.full(5, 0.6), 40)
    probs[::7] = 0
    np.save(tmp_path / "soft.npy", probs.astype(np.float16))
    return ArrayFile(tmp_path / "soft.npy")


def test_labels_below_the_threshold_are_gone_and_others_untouched(soft):
    found = SoftTargets(soft, params(min_confidence=0.6), None)[np.arange(40)]
    assert found.dtype == np.float16
    for row, label in zip(soft.rows(0, 40), found, strict=True):
        assert label.tolist() == (row.tolist() if max(row.tolist()) >= 0.6 else [0.0] * 5)
    assert 0 < found.any(axis=1).sum() < soft.rows(0, 40).any(axis=1).sum()


def test_left_alone_targets_are_the_stored_bytes(soft):
    found = SoftTargets(soft, OFF, None)[np.arange(40)]
    assert found.dtype == np.float16
    assert found.tobytes() == soft.rows(0, 40).tobytes()


def test_used_classes_are_the_best_ones_of_sure_labels(soft, monkeypatch):
    monkeypatch.setattr("framefold.data.soft_targets.BLOCK", 7)
    rows = soft.rows(0, 40).astype(np.float64)
    expected = [int(row.argmax()) if row.max() >= 0.5 else NO_CLASS for row in rows]
    assert used_classes(soft, params(min_confidence=0.5)).tolist() == expected
    assert (used_classes(soft, OFF) == NO_CLASS).tolist() == [row % 7 == 0 for row in range(40)]


def test_class_weights_are_powers_of_the_sizes_with_mean_one():
    classes = np.array([0] * 8 + [1] * 2 + [3] + [NO_CLASS] * 5, np.int32)
    weights = class_weights(classes, 5, 0.5)
    assert weights[1] / weights[0] == pytest.approx(2)
    assert weights[3] / weights[0] == pytest.approx(8**0.5)
    assert np.mean(weights[classes[:11]]) == pytest.approx(1)
    assert weights[[2, 4]].tolist() == [1, 1]
    assert class_weights(classes, 5, 0.0).tolist() == [1.0] * 5
    assert class_weights(np.full(4, NO_CLASS, np.int32), 2, 0.5).tolist() == [1, 1]


def test_weights_go_by_the_best_class_of_a_row(soft):
    weights = np.array([0.5, 1, 2, 3, 4], np.float32)
    rows = np.array([3, 7, 11])
    plain, weighted = SoftTargets(soft, OFF, None)[rows], SoftTargets(soft, OFF, weights)[rows]
    assert np.allclose(weighted, plain * weights[plain.argmax(1)][:, None])
    assert not weighted[1].any()


def test_a_threshold_takes_labels_away_and_leaves_the_others_their_weight(soft):
    """The loss is a mean over the used labels; times their share it is FixMatch's sum over all that have one."""
    rows, least = np.arange(5, 40), params(min_confidence=0.6)
    stored = soft.rows(0, 40)[rows].astype(np.float64)
    labelled, sure = stored.max(axis=1) > 0, stored.max(axis=1) >= 0.6
    assert 0 < sure.sum() < labelled.sum() < len(rows)
    used = SoftTargets(soft, least, label_weights(soft, rows, least))[rows]
    log_probs = np.log(np.random.default_rng(1).dirichlet(np.ones(5), len(rows)))
    fixmatch = -(stored[sure] * log_probs[sure]).sum() / labelled.sum()
    assert -(used * log_probs).sum() / sure.sum() == pytest.approx(fixmatch, rel=1e-3)  # labels are float16


def test_without_threshold_and_balance_every_label_counts_one(soft):
    assert label_weights(soft, np.arange(40), OFF) is None
    balanced = label_weights(soft, np.arange(40), params(balance=0.5))
    assert balanced.tolist() == class_weights(used_classes(soft, OFF), 5, 0.5).tolist()
