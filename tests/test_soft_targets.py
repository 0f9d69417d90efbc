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


def test_left_alone_targets_are_the_stored_bytes(soft):
    found = SoftTargets(soft, None)[np.arange(40)]
    assert found.dtype == np.float16
    assert found.tobytes() == soft.rows(0, 40).tobytes()


def test_used_classes_are_the_best_ones_of_sure_labels(soft, monkeypatch):
    monkeypatch.setattr("framefold.data.soft_targets.BLOCK", 7)
    rows = soft.rows(0, 40).astype(np.float64)
    expected = [int(row.argmax()) if row.any() and row.max() / row.sum() >= 0.5 else NO_CLASS for row in rows]
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
    plain, weighted = SoftTargets(soft, None)[rows], SoftTargets(soft, weights)[rows]
    assert np.allclose(weighted, plain * weights[plain.argmax(1)][:, None])
    assert not weighted[1].any()


def test_without_balance_every_label_counts_one(soft):
    assert label_weights(soft, np.arange(40), params(min_confidence=0.6)) is None


@pytest.mark.parametrize("least", [0.0, 0.6])
def test_balance_goes_by_the_labels_that_are_used_of_the_rows(soft, least):
    settings, rows = params(balance=0.5, min_confidence=least), np.arange(9, 40)
    used = used_classes(soft, settings)[rows]
    assert (used == NO_CLASS).sum() > 4 * (least > 0)
    assert label_weights(soft, rows, settings).tolist() == class_weights(used, 5, 0.5).tolist()
