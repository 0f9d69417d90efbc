"""What a method is worth, from the recorded labels alone: paired differences between arms, with their intervals."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from framefold.errors import UserError
from framefold.evaluation.bootstrap import percentile_interval, resampled_counts
from framefold.evaluation.metrics import distinct_outcomes, f1_parts, level1_of, official_scores
from framefold.storage import read_parquet
from framefold.study.arms import Arm, Pool, ResamplingParams
from framefold.study.outcome import TRUTH
from framefold.study.records import SPLITS, Records, Row, metadata, read_labels

POOLS: dict[Pool, tuple[str, ...]] = {
    "labeled": ("out_of_fold", "holdout"),  # defaults may be chosen by these, test is only reported
    "holdout": ("holdout",),
    "test": ("test",),
}
TOLERANCE = 2e-6  # of a score that was written with six digits
HELPS, HURTS, NOTHING = "helps", "hurts", "nothing seen"


@dataclass(frozen=True)
class Worth:
    """Score with the method minus score without: the mean over seeds, and its interval over resampled videos and
    seeds."""

    difference: float
    low: float
    high: float
    each: tuple[float, ...]  # seed by seed

    @property
    def spread(self) -> float | None:
        """The standard deviation over seeds. None: one seed."""
        return _spread(self.each)

    @property
    def verdict(self) -> str:
        """By whether the interval excludes zero. That of one seed knows nothing of other seeds."""
        if self.low <= 0 <= self.high:
            return NOTHING
        agreed = len({np.sign(one) for one in self.each}) == 1
        return (HELPS if self.low > 0 else HURTS) + (
            ", one seed" if len(self.each) == 1 else "" if agreed else ", not with every seed"
        )


@dataclass(frozen=True)
class Mean:
    """A score over seeds."""

    value: float
    spread: float | None


class Results:
    """The recorded results of a dataset. UserError: a file of labels that does not give the scores in the table."""

    def __init__(self, records: Records, runs: Collection[tuple[str, int]] | None = None):
        """runs: (arm, seed) of those that count; None: all."""
        self.records = records
        self.truth_path = records.folder / TRUTH
        rows = {(row["arm"], int(row["seed"]), row["split"]): row for row in records.rows()}
        self.rows = {key: row for key, row in rows.items() if runs is None or key[:2] in runs}
        self.machines = {key[:2]: row["machine"] for key, row in self.rows.items()}
        self._labels: dict[tuple[str, int], np.ndarray] = {}
        self._worths: dict[tuple[str, str, Pool, ResamplingParams], Worth | None] = {}

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

    def counting(self, rows: Sequence[Row]) -> list[Row]:
        """Those of the runs that count."""
        return [row for row in rows if (row["arm"], int(row["seed"])) in self.machines]

    def seeds(self, arm: str) -> list[int]:
        return sorted(seed for name, seed in self.machines if name == arm)

    def comparable_seeds(self, first: str, second: str) -> list[int]:
        """Those that both arms were run with on one kind of machine."""
        both = set(self.seeds(first)) & set(self.seeds(second))
        return sorted(seed for seed in both if self.machines[first, seed] == self.machines[second, seed])

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

    def worth(self, with_it: str, without: str, pool: Pool, bootstrap: ResamplingParams) -> Worth | None:
        """On the videos that all runs of both arms have labels of. None: no comparable seed or no video in common."""
        key = with_it, without, pool, bootstrap
        if key not in self._worths:
            self._worths[key] = self._worth(*key)
        return self._worths[key]

    def _worth(self, with_it: str, without: str, pool: Pool, bootstrap: ResamplingParams) -> Worth | None:
        seeds = self.comparable_seeds(with_it, without)
        if not seeds:
            return None
        first, second = (np.stack([self.labels(arm, seed) for seed in seeds]) for arm in (with_it, without))
        rows = np.isin(self.parts, POOLS[pool]) & (first >= 0).all(axis=0) & (second >= 0).all(axis=0)
        if not rows.any():
            return None
        difference = Difference(self.true_labels[rows], first[:, rows], second[:, rows], self.categories)
        return difference.worth(bootstrap)


@dataclass(frozen=True)
class Difference:
    """Labels of S runs of either side, first minus second; runs of one seed stand at the same place."""

    truth: np.ndarray  # (N,)
    first: np.ndarray  # (S, N)
    second: np.ndarray  # (S, N)
    categories: Sequence[str]

    def worth(self, bootstrap: ResamplingParams) -> Worth:
        """Videos are resampled, the same for all runs, and so are the seeds.

        The mean over n drawn seeds varies by s^2 (n - 1) / n^2, with s their standard deviation; the mean of n seeds
        varies by s^2 / n, so what the draw adds is widened to that.
        """
        outcomes, counts = distinct_outcomes(self.truth, *self.first, *self.second)
        level1, n = level1_of(self.categories), len(self.first)

        def differences(block: np.ndarray) -> np.ndarray:
            """(W, S) under W weightings of the outcomes."""
            truth, *runs = outcomes.T
            scores = np.stack([f1_parts(block, truth, labels, level1)["score"] for labels in runs], axis=1)
            return scores[:, :n] - scores[:, n:]

        blocks = resampled_counts(counts, bootstrap.resamples, bootstrap.seed)
        resampled = np.concatenate([differences(block) for block in blocks])  # (R, S)
        means = resampled.mean(axis=1)
        if n > 1:
            drawn = np.random.default_rng(bootstrap.seed + 1).multinomial(n, [1 / n] * n, len(resampled)) / n
            means = means + np.sqrt(n / (n - 1)) * ((drawn - 1 / n) * resampled).sum(axis=1)
        each = differences(counts[None])[0]
        low, high = percentile_interval(means)
        return Worth(float(each.mean()), low, high, tuple(each.tolist()))


def sides(arm: Arm) -> tuple[str, str] | None:
    """(arm with the method, arm without it); None for an arm that stands for no method."""
    if arm.rival is None:
        return None
    return (arm.rival, arm.name) if arm.kind == "without" else (arm.name, arm.rival)


def _spread(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
