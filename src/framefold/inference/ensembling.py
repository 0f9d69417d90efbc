"""Blending architectures: class weights, then a weighted mean of probabilities or of log-probabilities."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from framefold.evaluation.metrics import official_scores
from framefold.inference.blend_weights import Weights, greedy_weights, simplex_weights
from framefold.inference.cross_fitting import cross_fitted_labels
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


def fit_blend(
    members: Sequence[Member],
    labels: np.ndarray,
    folds: np.ndarray,
    categories: Sequence[str],
    how: Blend,
    method: Method,
) -> dict[str, Any]:
    """Blend weights from out-of-fold predictions, and what fitting them gains over equal weights.

    A member for each architecture; labels, validation folds (N,). The gain is cross-fitted over the folds: class
    weights and blend weights from the other folds, judged on this one. Equal weights stay when it is not positive, or
    with one fold only.
    """
    equal = (1 / len(members),) * len(members)
    if method == "equal" or len(members) == 1 or len(np.unique(folds)) == 1:
        gains = {"in_sample_gain": 0.0, "cross_fitted_gain": 0.0}
        return {"weights": list(equal), "fitted": list(equal), **gains, "used": False}

    def predict(rows: np.ndarray, mixture: Mixture) -> np.ndarray:
        return blend([probs[rows] for probs in mixture.probs], mixture.weights, how).argmax(axis=1)

    def score(rows: np.ndarray, mixture: Mixture) -> float:
        return official_scores(labels[rows], predict(rows, mixture), categories)["score"]

    def even(rows: np.ndarray) -> Mixture:
        return Mixture([member(rows) for member in members], equal)

    def fitted(rows: np.ndarray) -> Mixture:
        start, find = even(rows), greedy_weights if method == "greedy" else simplex_weights
        return start._replace(weights=find(len(members), lambda weights: score(rows, start._replace(weights=weights))))

    def cross_fitted_score(fit: Callable[[np.ndarray], Mixture]) -> float:
        return official_scores(labels, cross_fitted_labels(folds, fit, predict), categories)["score"]

    rows = np.arange(len(labels))
    found = fitted(rows)
    gain = cross_fitted_score(fitted) - cross_fitted_score(even)
    used = bool(gain > 0)
    gains = {"in_sample_gain": score(rows, found) - score(rows, even(rows)), "cross_fitted_gain": gain}
    return {"weights": list(found.weights if used else equal), "fitted": list(found.weights), **gains, "used": used}


def best_member(fold_scores: Mapping[tuple[str, int], float]) -> tuple[str, int]:
    """The (arch, fold) whose score on its own validation fold is highest; the first by name among equals.

    It takes validation scores only: the single model that one would have picked without looking at holdout or test.
    """
    return max(sorted(fold_scores), key=lambda member: fold_scores[member])
