"""The world that the demo's videos come from: its classes, how frequent each is, and what each shows and says.

A class is a *theme* (what its text is about) crossed with a *look* (what its frames show). Themes belong to a
*reading*, looks to a *scenery*. Groups come in pairs: an even pair shares its scenery and differs in reading (looks
alike), an odd pair shares its reading and differs in scenery (reads alike). Inside a group the classes walk a
zigzag,

    class      0       1       2       3       4
    theme      0 ===== 0       1 ===== 1       2
    look       0       1 ===== 1       2 ===== 2

so that text cannot tell 0 from 1, frames cannot tell 1 from 2, and only both together name every class.
"""

from dataclasses import dataclass

import numpy as np

from framefold.params.demo import DemoParams

HEAD_OFFSET = 6.0  # of the Zipf-Mandelbrot law of class sizes, count ~ (rank + HEAD_OFFSET) ** -exponent


@dataclass(frozen=True)
class World:
    """What holds for all videos. Arrays are indexed by class, in the order of the sorted category ids."""

    categories: list[str]  # LLSS
    group: np.ndarray  # (C,) level 1
    reading: np.ndarray  # (C,)
    theme: np.ndarray  # (C,)
    scenery: np.ndarray  # (C,)
    look: np.ndarray  # (C,)
    labeled_counts: np.ndarray  # (C,) sums to the labelled videos; its shares are the class prior of every split
    variants: int  # themes per reading, looks per scenery

    @property
    def prior(self) -> np.ndarray:
        return self.labeled_counts / self.labeled_counts.sum()

    def counts(self, n: int) -> np.ndarray:
        """Videos per class in a split of `n`: the prior's shares, rounded so that they sum to `n`."""
        return apportion(self.prior * n, n)


def build_world(params: DemoParams) -> World:
    cells = class_cells(params.groups, params.categories)
    groups, leaves = np.array(cells).T
    readings, sceneries = group_kinds(params.groups)
    variants = (int(leaves.max()) + 1) // 2 + 1
    reading, scenery = readings[groups], sceneries[groups]
    return World(
        categories=[f"{group:02d}{leaf:02d}" for group, leaf in cells],
        group=groups,
        reading=reading,
        theme=reading * variants + leaves // 2,
        scenery=scenery,
        look=scenery * variants + (leaves + 1) // 2,
        labeled_counts=class_sizes(params)[frequency_ranks(groups, leaves)],
        variants=variants,
    )


def class_cells(groups: int, categories: int) -> list[tuple[int, int]]:
    """(group, leaf) of every class; the first groups take what does not divide evenly."""
    sizes = [categories // groups + (group < categories % groups) for group in range(groups)]
    return [(group, leaf) for group in range(groups) for leaf in range(sizes[group])]


def group_kinds(groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Reading and scenery of every group: an even pair has one scenery in common, an odd pair one reading."""
    pair = np.arange(groups) // 2
    second = np.arange(groups) % 2
    new_reading = (second == 0) | (pair % 2 == 0)
    new_scenery = (second == 0) | (pair % 2 == 1)
    return np.cumsum(new_reading) - 1, np.cumsum(new_scenery) - 1


def frequency_ranks(groups: np.ndarray, leaves: np.ndarray) -> np.ndarray:
    """Rank of each class by size: neighbours on the zigzag and in a pair are of like size, the prior decides little."""
    order = np.lexsort((groups // 2, 2 * leaves + groups % 2))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order))
    return ranks


def class_sizes(params: DemoParams) -> np.ndarray:
    """Labelled videos by rank: a Zipf tail down to exactly `smallest_class`, its exponent solved so that all add up."""
    n, classes, smallest = params.labeled, params.categories, params.smallest_class
    ratio = (classes - 1 + HEAD_OFFSET) / (np.arange(classes) + HEAD_OFFSET)
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if smallest * (ratio**middle).sum() > n else (middle, high)
    return apportion(smallest * ratio**low, n)


def apportion(shares: np.ndarray, n: int) -> np.ndarray:
    """Integers near `shares` that sum to `n`: largest remainders, earlier first among equals."""
    counts = np.floor(shares + 1e-9).astype(np.int64)
    remainders = np.argsort(-(shares - counts), kind="stable")
    counts[remainders[: n - counts.sum()]] += 1
    return counts
