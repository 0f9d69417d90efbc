"""What tuning on out-of-fold predictions really gains: settings fitted on some videos, judged on others."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

Setting = TypeVar("Setting")


def deal_parts(labels: np.ndarray, groups: np.ndarray, n_parts: int, seed: int) -> np.ndarray:
    """(N,) part 0..n_parts-1 of each video: a duplicate group stays together, classes are spread evenly.

    Groups are shuffled, sorted by the class of their first video, and dealt in turn.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(len(first))
    dealt = shuffled[np.argsort(labels[first][shuffled], kind="stable")]
    part = np.empty(len(first), dtype=np.int64)
    part[dealt] = np.arange(len(first)) % n_parts
    return part[group]


def cross_fitted(
    parts: np.ndarray,
    fit: Callable[[np.ndarray], Setting],
    predict: Callable[[np.ndarray, Setting], np.ndarray],
) -> np.ndarray:
    """(N, ...) what is predicted for every part with the setting that was fitted on the other parts.

    fit(rows) -> setting; predict(rows, setting) -> labels or scores of those rows. `rows` are indices.
    """
    inside = [np.flatnonzero(parts == part) for part in np.unique(parts)]
    found = [predict(rows, fit(np.setdiff1d(np.arange(len(parts)), rows))) for rows in inside]
    return np.concatenate(found)[np.argsort(np.concatenate(inside))]


def is_worth_it(gain: float, least: float | None) -> bool:
    """Whether what was fitted is used, by its cross-fitted gain. least: None uses it whatever it gains."""
    return least is None or gain > least


def best(settings: Sequence[Setting], score: Callable[[Setting], float]) -> Setting:
    """The first setting with the highest score: put the one that changes nothing first."""
    scores = [score(setting) for setting in settings]
    return settings[int(np.argmax(scores))]
