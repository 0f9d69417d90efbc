"""Who is in the data: every video's split, id, class and, for a re-upload, the video that it copies."""

import hashlib
from dataclasses import dataclass

import numpy as np

from framefold.data.demo.world import World
from framefold.params.demo import DemoParams

SPLITS = ("labeled", "unlabeled", "test")
REUPLOADS = 0.04  # of all videos; the original may stand in any split


@dataclass(frozen=True)
class Plan:
    """Arrays by video number; numbers run through the splits in order."""

    split: np.ndarray  # (N,) index into SPLITS
    truth: np.ndarray  # (N,) class
    annotated: np.ndarray  # (N,) class as the labels say it: the truth but for noise among the labelled
    original: np.ndarray  # (N,) number of the video that this one copies; its own where it is no copy
    seed: int

    def video_id(self, number: int) -> str:
        """16 to 20 digits, some beyond int64, in no order."""
        digest = hashlib.blake2b(f"{self.seed}/{number}".encode(), digest_size=16).digest()
        digits = 16 + number % 5
        return str(10 ** (digits - 1) + int.from_bytes(digest, "big") % (9 * 10 ** (digits - 1)))


def make_plan(world: World, params: DemoParams) -> Plan:
    rng = np.random.default_rng([params.seed, 0])
    sizes = (params.labeled, params.unlabeled, params.test)
    split = np.repeat(np.arange(len(SPLITS)), sizes)
    truth = np.concatenate([rng.permutation(np.repeat(np.arange(len(world.prior)), world.counts(n))) for n in sizes])
    annotated = truth.copy()
    exchange(rng, annotated[: params.labeled], params.label_noise)
    return Plan(split, truth, annotated, choose_originals(rng, split, truth), params.seed)


def exchange(rng: np.random.Generator, labels: np.ndarray, share: float) -> None:
    """Label noise that keeps the class sizes: a share of the videos pass their labels on to each other, in place."""
    noisy = rng.permutation(len(labels))[: round(share * len(labels))]
    labels[noisy] = np.roll(labels[noisy], 1)


def choose_originals(rng: np.random.Generator, split: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """A share of the videos copy an earlier draw of their class, from a split drawn at random if that has any."""
    original = np.arange(len(truth))
    copies = np.sort(rng.permutation(len(truth))[: round(REUPLOADS * len(truth))])
    genuine = np.ones(len(truth), dtype=bool)
    genuine[copies] = False
    for copy in copies:
        same = genuine & (truth == truth[copy])
        nearby = same & (split == rng.integers(len(SPLITS)))
        candidates = np.flatnonzero(nearby if nearby.any() else same)
        if len(candidates):
            original[copy] = rng.choice(candidates)
    return original
