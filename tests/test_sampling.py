"""Oversampling of rare classes: python -m pytest tests/test_sampling.py"""

import numpy as np
import pytest
import torch

from framefold.data.batches import ALL, Batch, EpochBatches
from framefold.data.sampling import ResampledVideos, dealt_rounds, resampled

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


def batches_of(epoch: EpochBatches) -> list[np.ndarray]:
    return [epoch[index]["index"].numpy() for index in range(len(epoch))]


def by_length_alone(epoch: EpochBatches) -> list[np.ndarray]:
    """The same samples in batches of the same number, sorted by nothing but length."""
    samples = np.random.default_rng(0).permutation(shown(epoch))
    return np.array_split(samples[np.argsort(samples % 17, kind="stable")], len(epoch))


def share_of_repetitions(batches: list[np.ndarray]) -> float:
    """Of the samples that are not the first of their kind in the epoch: how many meet another copy in their batch."""
    copies = sum(map(len, batches)) - len(np.unique(np.concatenate(batches)))
    return sum(len(one) - len(np.unique(one)) for one in batches) / copies


@pytest.mark.parametrize("power", [0.3, 0.5])
def test_copies_of_a_sample_seldom_meet_in_a_batch(power):
    epoch = epoch_of(0, power=power)
    assert share_of_repetitions(batches_of(epoch)) < share_of_repetitions(by_length_alone(epoch)) / 4


@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_classes_are_mixed_in_batches_as_by_chance(power):
    """Rounds that held second copies only would be rounds of rare classes."""
    batches = batches_of(epoch_of(0, power=power))
    common = CLASSES[np.concatenate(batches)] == 0
    spread = np.std([(CLASSES[one] == 0).mean() for one in batches])
    assert spread < 1.3 * np.sqrt(common.mean() * (1 - common.mean()) / 32)


def test_copies_cost_little_padding():
    """Every round is sorted by length."""

    def padding(batches: list[np.ndarray]) -> float:
        lengths = [5 + one % 17 for one in batches]
        return float(sum(len(one) * one.max() - one.sum() for one in lengths) / sum(one.sum() for one in lengths))

    epoch = epoch_of(0, power=0.5)
    shuffled = np.random.default_rng(0).permutation(shown(epoch))
    assert padding(batches_of(epoch)) < padding(np.array_split(shuffled, len(epoch))) / 3


def test_without_repetitions_there_is_one_round():
    assert not dealt_rounds(np.arange(50), np.random.default_rng(0)).any()
    assert len(dealt_rounds(np.arange(0), np.random.default_rng(0))) == 0


def test_copies_are_dealt_evenly_over_the_rounds():
    chosen = np.repeat(np.arange(3), [1, 4, 13])
    for seed in range(20):
        rounds = dealt_rounds(chosen, np.random.default_rng(seed))
        assert rounds.min() >= 0
        assert rounds.max() < 6
        assert len(set(rounds[chosen == 1].tolist())) == 4
        assert np.ptp(np.bincount(rounds[chosen == 2], minlength=6)) <= 1
