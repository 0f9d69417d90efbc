"""Which samples an epoch takes when rare classes are to come more often than they are."""

import numpy as np
import numpy.typing as npt


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
