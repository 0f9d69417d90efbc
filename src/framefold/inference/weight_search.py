"""Class weights by coordinate ascent on the official score, as winners of the WeChat Big Data Challenge 2022 did.

One class's weight at a time goes through a grid between -bound and bound (of its logarithm), and takes the value with
the highest score. Only a video's choice between this class and its best other one can change, so the scores of the
whole grid are counts that are moved from one class to another: 200 classes x 100,000 videos take seconds.
"""

from collections.abc import Sequence

import numpy as np

from framefold.evaluation.metrics import level1_of


def search_weights(
    probs: np.ndarray, labels: np.ndarray, categories: Sequence[str], bound: float, steps: int, sweeps: int
) -> np.ndarray:
    """(C,) weights within exp(-bound)..exp(bound); probs (N, C), labels (N,). The score never falls below that of ones.

    Classes are taken in their order, at most `sweeps` times, until none changes. Among equal scores a weight stays.
    """
    grid = np.exp(np.linspace(-bound, bound, 2 * steps + 1))
    grid[steps] = 1.0
    search = _Search(probs, labels, categories)
    for _ in range(sweeps):
        changed = [search.improve(number, grid) for number in range(probs.shape[1])]
        if not any(changed):
            break
    return search.weights


class _Search:
    """The weighted probabilities (N, C), kept up to date."""

    def __init__(self, probs: np.ndarray, labels: np.ndarray, categories: Sequence[str]):
        self.probs, self.labels, self.weighted = probs, labels, probs.copy()
        self.weights, self.rows = np.ones(probs.shape[1]), np.arange(len(labels))
        self.counts = _Counts(labels, level1_of(categories))
        self.first, self.second = self._best_two(self.rows)

    def improve(self, number: int, grid: np.ndarray) -> bool:
        """Give class `number` the best weight of `grid` (G,), ascending; whether that changed anything."""
        scores = self.scores(number, np.append(grid, self.weights[number]))
        best = int(np.argmax(scores[:-1]))
        if scores[best] <= scores[-1]:
            return False
        self._set(number, float(grid[best]))
        return True

    def scores(self, number: int, candidates: np.ndarray) -> np.ndarray:
        """(G,) official score with each of the candidates as the weight of class `number`, all else as it is."""
        other = np.where(self.first == number, self.second, self.first)
        rival = self.weighted[self.rows, other]
        own = self.probs[:, number]
        near = np.flatnonzero(own * candidates.max() >= rival)
        products = own[near, None] * candidates  # argmax takes the first of equal ones
        wins = (products > rival[near, None]) | ((products == rival[near, None]) & (number < other[near, None]))
        return self.counts.scores(other, near, wins, number)

    def _set(self, number: int, weight: float) -> None:
        self.weights[number] = weight
        column = self.probs[:, number] * weight
        grown = column >= self.weighted[self.rows, self.second]
        self.weighted[:, number] = column
        stale = np.flatnonzero(grown | (self.first == number) | (self.second == number))
        self.first[stale], self.second[stale] = self._best_two(stale)

    def _best_two(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Columns of the largest and the second largest of each row; of equal ones the first."""
        values = self.weighted[rows]
        first = values.argmax(axis=1)
        values[np.arange(len(rows)), first] = -np.inf
        return first, values.argmax(axis=1)


class _Counts:
    """Hits and guesses of both levels, for predictions that differ in one class."""

    def __init__(self, labels: np.ndarray, level1: np.ndarray):
        self.labels, self.level1 = labels, level1
        self.parents = np.eye(int(level1.max()) + 1)[level1]  # (C, L)
        self.support = np.bincount(labels, minlength=len(level1)).astype(np.float64)

    def scores(self, other: np.ndarray, near: np.ndarray, wins: np.ndarray, number: int) -> np.ndarray:
        """(G,) scores: videos have the label `other` (N,), rows `near` (M,) have `number` where `wins` (M, G)."""
        size, truth, before = len(self.level1), self.labels[near], other[near]
        won = wins.astype(np.float64)
        guesses = np.bincount(other, minlength=size) - moved(won, before, size)
        hits = np.bincount(other[other == self.labels], minlength=size) - moved(won, before, size, before == truth)
        parents, own = self.level1[before], self.level1[number]
        hit = self.level1[other] == self.level1[self.labels]
        hits1 = np.bincount(self.level1[other[hit]], minlength=self.parents.shape[1])
        hits1 = hits1 - moved(won, parents, self.parents.shape[1], parents == self.level1[truth])
        guesses[:, number] += won.sum(axis=0)
        hits[:, number] += won[truth == number].sum(axis=0)
        hits1[:, own] += won[self.level1[truth] == own].sum(axis=0)
        level2 = f1_means(hits, self.support, guesses)
        level1 = f1_means(hits1, self.support @ self.parents, guesses @ self.parents)
        return (level1 + level2) / 4


def moved(won: np.ndarray, classes: np.ndarray, size: int, where: np.ndarray | None = None) -> np.ndarray:
    """(G, size): how many of the rows (M,) of each class are won (M, G)."""
    total = np.zeros((size, won.shape[1]))
    chosen = slice(None) if where is None else where
    np.add.at(total, classes[chosen], won[chosen])
    return total.T


def f1_means(hits: np.ndarray, support: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """(G,) micro plus macro F1 of counts (G, C); macro over the classes in truth or prediction."""
    present = support + guesses > 0
    f1 = 2 * hits / np.maximum(support + guesses, 1)
    micro: np.ndarray = hits.sum(axis=1) / support.sum() + f1.sum(axis=1) / present.sum(axis=1)
    return micro
