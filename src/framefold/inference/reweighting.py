"""Class weights `1 + a / n_c^b` on the probabilities: rare classes count more in macro F1 than in the training loss.

The form comes from solutions of the WeChat Big Data Challenge 2022. (a, b) is fitted on out-of-fold predictions; its
gain is estimated on videos that the fit did not see, and the weights stay 1 when that is not above `min_gain`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from framefold.evaluation.metrics import official_scores
from framefold.inference.cross_fitting import best, cross_fitted_labels, deal_parts
from framefold.params.reweight import ReweightParams

Exponents = tuple[float, float]


def class_weights(class_sizes: np.ndarray, a: float, b: float) -> np.ndarray:
    """(C,) weights from the number of training videos of each class (C,)."""
    return 1 + a / np.maximum(class_sizes, 1.0) ** b


def grid(params: ReweightParams) -> list[Exponents]:
    """No reweighting first: it wins ties."""
    return [(0.0, 1.0)] + [(a, b) for a in params.a for b in params.b if a != 0]


def fit_reweighting(
    probs: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    class_sizes: np.ndarray,
    categories: Sequence[str],
    params: ReweightParams,
) -> dict[str, Any]:
    """Content of models/reweight/<arch>.json. Out-of-fold probs (N, C), labels and groups (N,); class_sizes (C,)."""

    def score(predicted: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        return official_scores(labels[rows], predicted, categories)["score"]

    def predict(rows: np.ndarray | slice, setting: Exponents) -> np.ndarray:
        return (probs[rows] * class_weights(class_sizes, *setting)).argmax(axis=1)

    def fit(rows: np.ndarray | slice) -> Exponents:
        return best(grid(params), lambda setting: score(predict(rows, setting), rows))

    parts = deal_parts(labels, groups, params.cross_fit_folds, params.seed)
    before, (a, b) = score(probs.argmax(axis=1)), fit(slice(None))
    gain = score(cross_fitted_labels(parts, fit, predict)) - before
    return {
        "a": a,
        "b": b,
        "used": bool(gain > params.min_gain),
        "cross_fitted_gain": gain,
        "out_of_fold_before": before,
        "out_of_fold_after": score(predict(slice(None), (a, b))),
        "weights": (class_weights(class_sizes, a, b) if gain > params.min_gain else np.ones(len(class_sizes))).tolist(),
    }
