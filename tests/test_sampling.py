"""Oversampling of rare classes: python -m pytest tests/test_sampling.py"""

import numpy as np
import pytest

from framefold.data.sampling import resampled

CLASSES = np.repeat([0, 1, 2], [900, 90, 10])


def test_power_0_takes_everyone_once():
    assert np.array_equal(resampled(CLASSES, 0.0, np.random.default_rng(0)), np.arange(1000))


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_classes_come_in_proportion_to_a_power_of_their_size(power):
    counts = np.bincount(CLASSES[resampled(CLASSES, power, np.random.default_rng(0))])
    wanted = np.bincount(CLASSES) ** (1 - power)
    assert counts.sum() == 1000
    assert np.abs(counts - 1000 * wanted / wanted.sum()).max() <= 1


def test_samples_of_a_class_come_equally_often_but_for_one_time():
    times = np.bincount(resampled(CLASSES, 1.0, np.random.default_rng(0)), minlength=1000)
    assert all(np.ptp(times[label == CLASSES]) <= 1 for label in range(3))


def test_a_generator_in_the_same_state_chooses_the_same():
    first, again, other = (resampled(CLASSES, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_number_that_nobody_has_changes_nothing():
    gap = np.where(CLASSES == 2, 5, CLASSES)
    chosen = [resampled(classes, 1.0, np.random.default_rng(0)) for classes in (CLASSES, gap)]
    assert np.array_equal(*chosen)
