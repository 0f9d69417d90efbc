"""Which samples an epoch takes when rare classes are to come more often than they are."""

import numpy as np
import numpy.typing as npt

from framefold.data.batches import ALL, Batch, MeasuredSamples, sample_rng

CHOICE = 1  # the key of an epoch's choice of samples, in the place of a video's; that of their order is 0
ROUNDS = 6  # of an epoch with repetitions: more separate copies better and sort fewer samples by length at a time


class ResampledVideos:
    """Samples of one epoch in which a class of n comes ~ n^(1 - power) times, as many in all as there are.

    Who comes is keyed by (seed, epoch): the same in every process, worker and resumed run. A video that comes twice in
    an epoch shows the same frames. `order_keys` sort by rounds first, then by the samples' own keys: by length alone
    the copies of a video would be neighbours, that is a weight in one batch rather than several sights.
    """

    def __init__(self, samples: MeasuredSamples, classes: npt.NDArray[np.integer], power: float, seed: int, epoch: int):
        rng = sample_rng(seed, epoch, CHOICE)
        self.samples, self.chosen = samples, resampled(classes, power, rng)
        self.rounds = dealt_rounds(self.chosen, rng)

    def __len__(self) -> int:
        return len(self.chosen)

    def order_keys(self) -> npt.NDArray[np.integer]:
        keys = self.samples.order_keys()[self.chosen].astype(np.int64)
        return keys + self.rounds * (int(keys.max(initial=0)) + 1)

    def sizes(self) -> npt.NDArray[np.integer]:
        return self.samples.sizes()[self.chosen]

    def names(self, positions: npt.NDArray[np.int64]) -> list[str]:
        return self.samples.names(self.chosen[positions])

    def batch(self, positions: npt.NDArray[np.int64], draw: tuple[int, int] | None = None, part: slice = ALL) -> Batch:
        return self.samples.batch(self.chosen[positions], draw, part)


def resampled(classes: npt.NDArray[np.integer], power: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """N positions into `classes` (N,), ascending, with repetitions: a class of n samples comes ~ n^(1 - power) times.

    power 0: everyone once; 1: all classes equally often. The samples of a class come equally often, but for one time
    more or less (systematic sampling, so that a whole number is not left to chance); `rng` decides who.
    """
    if power == 0 or len(classes) == 0:
        return np.arange(len(classes))
    sizes = np.bincount(classes)
    shares = np.where(sizes > 0, np.maximum(sizes, 1.0) ** -power, 0.0)[classes]
    shuffled = rng.permutation(len(classes))
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]  # so each class stands together, in random order
    ends = np.cumsum(shares[by_class])
    marks = (np.arange(len(classes)) + rng.random()) * ends[-1] / len(classes)
    return np.sort(by_class[np.searchsorted(ends, marks, side="right").clip(max=len(classes) - 1)])


def dealt_rounds(chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(N,) the round of an epoch in which each of the ascending positions `chosen` (N,) comes, 0 where none repeats.

    There are as many rounds as the commonest position has copies, but at most ROUNDS. A position's copies are spread
    evenly over them from a random start, so all rounds show the classes in like shares.
    """
    if len(chosen) == 0:
        return chosen
    times, earlier = np.bincount(chosen), np.arange(len(chosen)) - np.searchsorted(chosen, chosen)
    start = rng.random(len(times))
    return ((earlier + start[chosen]) / times[chosen] * min(int(times.max()), ROUNDS)).astype(np.int64)
