"""Blending architectures: class weights, then a weighted mean of probabilities or of log-probabilities."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from framefold.evaluation.metrics import official_scores
from framefold.inference.blend_weights import Weights, greedy_weights, simplex_weights
from framefold.inference.cross_fitting import cross_fitted, is_worth_it
from framefold.inference.predictions import softmax

Blend = Literal["probs", "logits"]
Method = Literal["equal", "simplex", "greedy"]
# An architecture's out-of-fold probabilities (N, C) after class weights that were fitted on these rows of them alone.
Member = Callable[[np.ndarray], np.ndarray]


class Mixture(NamedTuple):
    """Members after their class weights, (N, C) each, and the weight of each in the blend."""

    probs: Sequence[np.ndarray]
    weights: Weights


def reweighted_probs(logits: np.ndarray, class_weights: np.ndarray) -> np.ndarray:
    """(N, C) logits -> probabilities after class weights (C,), rows summing to one."""
    weighted = softmax(logits) * class_weights
    return weighted / weighted.sum(axis=1, keepdims=True)


def blend(probs: Sequence[np.ndarray], weights: Sequence[float], how: Blend) -> np.ndarray:
    """A (N, C) array per architecture -> one (N, C) of scores: their arithmetic (probs) or geometric (logits) mean."""
    terms = probs if how == "probs" else [np.log(np.maximum(p, 1e-12)) for p in probs]
    return np.sum([weight * term for term, weight in zip(terms, weights, strict=True)], axis=0)


@dataclass(frozen=True)
class OutOfFold:
    """Out-of-fold predictions of every architecture, and what is fitted on some of them to be judged on others."""

    members: Sequence[Member]
    labels: np.ndarray  # (N,)
    parts: np.ndarray  # (N,) of cross-fitting: duplicates stay together
    categories: Sequence[str]
    how: Blend

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self.labels))

    @property
    def equal(self) -> Weights:
        return (1 / len(self.members),) * len(self.members)

    def even(self, rows: np.ndarray) -> Mixture:
        """Class weights fitted on `rows`, equal blend weights."""
        return Mixture([member(rows) for member in self.members], self.equal)

    def fitted(self, rows: np.ndarray, method: Method) -> Mixture:
        """Class weights and blend weights fitted on `rows`."""
        start, find = self.even(rows), greedy_weights if method == "greedy" else simplex_weights
        weights = find(len(self.members), lambda weights: self.score(rows, start._replace(weights=weights)))
        return start._replace(weights=weights)

    def scores(self, rows: np.ndarray, mixture: Mixture) -> np.ndarray:
        """(len(rows), C)"""
        return blend([probs[rows] for probs in mixture.probs], mixture.weights, self.how)

    def score(self, rows: np.ndarray, mixture: Mixture) -> float:
        predicted = self.scores(rows, mixture).argmax(axis=1)
        return official_scores(self.labels[rows], predicted, self.categories)["score"]

    def cross_fitted(self, fit: Callable[[np.ndarray], Mixture]) -> np.ndarray:
        """(N, C) scores of every part, by what was fitted on the other parts."""
        return cross_fitted(self.parts, fit, self.scores)

    def cross_fitted_score(self, fit: Callable[[np.ndarray], Mixture]) -> float:
        predicted = self.cross_fitted(fit).argmax(axis=1)
        return official_scores(self.labels, predicted, self.categories)["score"]


def fit_blend(out_of_fold: OutOfFold, method: Method, min_gain: float | None) -> dict[str, Any]:
    """Blend weights from out-of-fold predictions, and what fitting them gains over equal weights.

    The gain is cross-fitted: class weights and blend weights from the other parts, judged on this one. Equal weights
    stay when it is not above `min_gain` (None: never).
    """
    equal = out_of_fold.equal
    if method == "equal" or len(equal) == 1:
        gains = {"in_sample_gain": 0.0, "cross_fitted_gain": 0.0}
        return {"weights": list(equal), "fitted": list(equal), **gains, "used": False}

    def fit(rows: np.ndarray) -> Mixture:
        return out_of_fold.fitted(rows, method)

    rows = out_of_fold.rows
    found = fit(rows)
    gain = out_of_fold.cross_fitted_score(fit) - out_of_fold.cross_fitted_score(out_of_fold.even)
    used = is_worth_it(gain, min_gain)
    in_sample = out_of_fold.score(rows, found) - out_of_fold.score(rows, out_of_fold.even(rows))
    weights = {"weights": list(found.weights if used else equal), "fitted": list(found.weights)}
    return weights | {"in_sample_gain": in_sample, "cross_fitted_gain": gain, "used": used}


def cross_fitted_blend(out_of_fold: OutOfFold, method: Method, used: bool) -> np.ndarray:
    """(N, C) out-of-fold scores of the ensemble: of each video, by weights that were fitted without it and its part.

    used: whether `fit_blend` has found that fitted blend weights are of use."""
    if not used:
        return out_of_fold.cross_fitted(out_of_fold.even)
    return out_of_fold.cross_fitted(lambda rows: out_of_fold.fitted(rows, method))


def best_member(fold_scores: Mapping[tuple[str, int], float]) -> tuple[str, int]:
    """The (arch, fold) whose score on its own validation fold is highest; the first by name among equals.

    It takes validation scores only: the single model that one would have picked without looking at holdout or test.
    """
    return max(sorted(fold_scores), key=lambda member: fold_scores[member])
