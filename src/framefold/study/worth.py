"""What a method is worth, from the recorded labels alone: paired differences between arms, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from framefold.errors import UserError
from framefold.evaluation.metrics import official_scores, paired_difference
from framefold.storage import read_parquet
from framefold.study.arms import Arm, ResamplingParams
from framefold.study.outcome import TRUTH
from framefold.study.records import SPLITS, Records, metadata, read_labels

LABELED = "labeled"  # out of fold and holdout: defaults may be chosen by these, test is only reported
POOLS = {LABELED: ("out_of_fold", "holdout"), "holdout": ("holdout",), "test": ("test",)}
TOLERANCE = 2e-6  # of a score that was written with six digits
HELPS, HURTS, NOTHING = "helps", "hurts", "nothing seen"


@dataclass(frozen=True)
class Worth:
    """Score with the method minus score without: the mean over seeds; its interval over resampled videos, for these
    very runs; the standard deviation over seeds (None: one seed)."""

    difference: float
    low: float
    high: float
    spread: float | None
    agreed: bool  # the sign is the same with every seed

    @property
    def verdict(self) -> str:
        """By whether the interval excludes zero."""
        if self.low <= 0 <= self.high:
            return NOTHING
        return (HELPS if self.low > 0 else HURTS) + ("" if self.agreed else ", not with every seed")


@dataclass(frozen=True)
class Mean:
    """A score over seeds."""

    value: float
    spread: float | None


class Results:
    """The recorded results of a dataset. UserError: a file of labels that does not give the scores in the table."""

    def __init__(self, records: Records):
        self.records = records
        self.truth_path = records.folder / TRUTH
        self.rows = {(row["arm"], int(row["seed"]), row["split"]): row for row in records.rows()}
        self._labels: dict[tuple[str, int], np.ndarray] = {}
        self._worths: dict[tuple[str, str, str, ResamplingParams], Worth | None] = {}

    @cached_property
    def truth(self) -> pa.Table:
        return read_parquet(self.truth_path, columns=["part", "label"])

    @cached_property
    def parts(self) -> np.ndarray:
        return np.array(self.truth["part"].to_pylist())

    @cached_property
    def true_labels(self) -> np.ndarray:
        return self.truth["label"].to_numpy().astype(np.int64)

    @cached_property
    def categories(self) -> list[str]:
        return metadata(self.truth_path, b"categories").decode().split(",")

    def seeds(self, arm: str) -> list[int]:
        return sorted({seed for name, seed, _ in self.rows if name == arm})

    def score(self, arm: str, split: str) -> Mean | None:
        """None: the arm has no such split, or was not run."""
        values = [float(row["score"]) for (name, _, part), row in self.rows.items() if (name, part) == (arm, split)]
        return Mean(float(np.mean(values)), _spread(values)) if values else None

    def labels(self, arm: str, seed: int) -> np.ndarray:
        """(N,) of all scored videos, -1: none."""
        if (arm, seed) not in self._labels:
            column = read_labels(self.records.labels_path(arm, seed), self.truth_path)["label"]
            labels = np.array([-1 if label is None else label for label in column.to_pylist()])
            self._check(arm, seed, labels)
            self._labels[arm, seed] = labels
        return self._labels[arm, seed]

    def _check(self, arm: str, seed: int, labels: np.ndarray) -> None:
        for split in set(SPLITS) & set(self.parts):
            own, row = (self.parts == split) & (labels >= 0), self.rows.get((arm, seed, split))
            score = official_scores(self.true_labels[own], labels[own], self.categories)["score"] if own.any() else None
            if (row is None) != (score is None) or (row and abs(float(row["score"]) - (score or 0)) > TOLERANCE):
                raise UserError(
                    f"{self.records.labels_path(arm, seed)}: scores {score} on {split}, the table says "
                    f"{row and row['score']}; run this arm again"
                )

    def worth(self, with_it: str, without: str, pool: str, bootstrap: ResamplingParams) -> Worth | None:
        """On the videos that all runs of both arms have labels of. None: no seed or no video in common."""
        key = with_it, without, pool, bootstrap
        if key not in self._worths:
            self._worths[key] = self._worth(*key)
        return self._worths[key]

    def _worth(self, with_it: str, without: str, pool: str, bootstrap: ResamplingParams) -> Worth | None:
        seeds = sorted(set(self.seeds(with_it)) & set(self.seeds(without)))
        if not seeds:
            return None
        first, second = (np.stack([self.labels(arm, seed) for seed in seeds]) for arm in (with_it, without))
        rows = np.isin(self.parts, POOLS[pool]) & (first >= 0).all(axis=0) & (second >= 0).all(axis=0)
        if not rows.any():
            return None
        truth, first, second = self.true_labels[rows], first[:, rows], second[:, rows]
        pair = paired_difference(truth, first, second, self.categories, bootstrap.resamples, bootstrap.seed)
        each = self._differences(truth, first, second)
        agreed = len({np.sign(one) for one in each}) == 1
        difference, low, high = (float(pair[name]) for name in ("difference", "low", "high"))
        return Worth(difference, low, high, _spread(each), agreed)

    def _differences(self, truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> list[float]:
        """Seed by seed."""
        scores = [
            [official_scores(truth, labels, self.categories)["score"] for labels in side] for side in (first, second)
        ]
        return [a - b for a, b in zip(*scores, strict=True)]


def sides(arm: Arm) -> tuple[str, str] | None:
    """(arm with the method, arm without it); None for an arm that stands for no method."""
    if arm.rival is None:
        return None
    return (arm.rival, arm.name) if arm.kind == "without" else (arm.name, arm.rival)


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
