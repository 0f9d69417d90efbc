"""Oversampling of rare classes: python -m pytest tests/test_sampling.py"""

import numpy as np
import pytest
import torch

from framefold.data.batches import ALL, Batch, EpochBatches
from framefold.data.sampling import ResampledVideos, resampled

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


class Numbers:
    """Samples that say who they are; as long as their number says."""

    def __len__(self) -> int:
        return len(CLASSES)

    def order_keys(self) -> np.ndarray:
        return np.arange(len(self)) % 17

    def sizes(self) -> np.ndarray:
        return np.stack([5 + np.arange(len(self)) % 17, np.zeros(len(self), int)], axis=1)

    def names(self, positions: np.ndarray) -> list[str]:
        return [f"v{position}" for position in positions]

    def batch(self, positions: np.ndarray, draw: tuple[int, int] | None = None, part: slice = ALL) -> Batch:
        own = np.asarray(positions)[part]
        return {"index": torch.from_numpy(own), "label": torch.from_numpy(CLASSES[own])}


def epoch_of(epoch: int, power: float = 0.5, seed: int = 0, tokens: int | None = None) -> EpochBatches:
    videos = ResampledVideos(Numbers(), CLASSES, power, seed, epoch)
    return EpochBatches(videos, 32, seed=seed, epoch=epoch, batch_tokens=tokens)


def shown(batches: EpochBatches) -> list[int]:
    return [one for index in range(len(batches)) for one in batches[index]["index"].tolist()]


def test_every_epoch_has_as_many_samples_and_others():
    """The loop's schedule counts on the number; rare classes show all they have, frequent ones take turns."""
    epochs = [shown(epoch_of(epoch)) for epoch in range(3)]
    assert [len(epoch) for epoch in epochs] == [1000] * 3
    assert sorted(epochs[0]) != sorted(epochs[1])
    wanted = np.array([900, 90, 10]) ** 0.5
    for epoch in epochs:
        assert np.abs(np.bincount(CLASSES[epoch]) - 1000 * wanted / wanted.sum()).max() <= 1
        assert set(range(990, 1000)) <= set(epoch)


def test_an_epoch_is_the_same_whenever_it_is_made():
    """So a resumed run and every process see the same samples; another seed sees others."""
    assert shown(epoch_of(2)) == shown(epoch_of(2)) != shown(epoch_of(2, seed=1))


@pytest.mark.parametrize("tokens", [None, 300])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_samples_of_one(world, tokens):
    parts = [epoch_of(1, tokens=tokens).shard(rank, world) for rank in range(world)]
    together = sorted(one for part in parts for one in shown(part))
    assert together == sorted(shown(epoch_of(1, tokens=tokens)))


def test_names_lengths_and_batches_are_of_the_same_samples():
    """A sample that comes twice has its name and its size twice."""
    videos = ResampledVideos(Numbers(), CLASSES, 1.0, seed=0, epoch=0)
    positions = np.arange(900, 1000)
    index = videos.batch(positions)["index"].numpy()
    assert videos.names(positions) == [f"v{one}" for one in index]
    assert np.array_equal(videos.order_keys()[positions] % 17, index % 17)
    assert np.array_equal(videos.sizes()[positions, 0], 5 + index % 17)
    assert len(set(index.tolist())) < len(index)
    assert np.array_equal(videos.batch(positions, part=slice(1, None, 2))["index"], index[1::2])


def test_the_copies_of_a_sample_stand_in_batches_of_their_own():
    """An epoch is but one run of like lengths here, in which equal ones are neighbours."""
    batches = epoch_of(0, power=0.5)
    twice = [np.bincount(batches[index]["index"]).max() for index in range(len(batches))]
    assert np.bincount(shown(batches)).max() >= 4
    assert np.mean(np.array(twice) > 1) < 0.1


def test_copies_cost_little_padding():
    """First sights are sorted by length among themselves, and so are the others."""

    def padding(batches: list[np.ndarray]) -> float:
        lengths = [5 + one % 17 for one in batches]
        return float(sum(len(one) * one.max() - one.sum() for one in lengths) / sum(one.sum() for one in lengths))

    epoch = epoch_of(0, power=0.5)
    own = [epoch[index]["index"].numpy() for index in range(len(epoch))]
    shuffled = np.random.default_rng(0).permutation(np.concatenate(own))
    assert padding(own) < padding(np.array_split(shuffled, len(own))) / 5
