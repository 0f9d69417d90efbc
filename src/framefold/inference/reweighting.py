"""Class weights on the probabilities: rare classes count more in macro F1 than in the training loss.

formula           1 + a / n_c^b, from solutions of the WeChat Big Data Challenge 2022; (a, b) from a grid
logit_adjustment  prior_c^-tau, that is logits - tau * log prior (Menon et al. 2021, post hoc); tau from a grid
search            a weight for each class, by coordinate ascent on the score (weight_search.py)

Settings are fitted on out-of-fold predictions. A method's gain is estimated on videos that its fit did not see; the
weights stay 1 when that of the chosen method is not above `min_gain` (None: never). The other methods are measured
beside it: the distance of their gain in sample from the cross-fitted one is how optimistic each of them is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from framefold.evaluation.metrics import official_scores
from framefold.inference.cross_fitting import best, cross_fitted, deal_parts, is_worth_it
from framefold.inference.weight_search import search_weights
from framefold.params.reweight import ReweightParams

METHODS = ("formula", "logit_adjustment", "search")
Rows = np.ndarray | slice
ALL = slice(None)


class Setting(NamedTuple):
    """What a method has chosen, and the class weights (C,) that follow from it."""

    values: dict[str, float]
    weights: np.ndarray


def class_weights(class_sizes: np.ndarray, a: float, b: float) -> np.ndarray:
    """(C,) weights from the number of training videos of each class (C,)."""
    return 1 + a / np.maximum(class_sizes, 1.0) ** b


def prior_weights(class_sizes: np.ndarray, tau: float) -> np.ndarray:
    """(C,) weights prior^-tau; a class without training videos counts as one with a single video."""
    sizes = np.maximum(class_sizes, 1.0)
    return (sizes / sizes.sum()) ** -tau


def formula_settings(class_sizes: np.ndarray, params: ReweightParams) -> list[Setting]:
    """No reweighting first: it wins ties."""
    grid = [(0.0, 1.0)] + [(a, b) for a in params.a for b in params.b if a != 0]
    return [Setting({"a": a, "b": b}, class_weights(class_sizes, a, b)) for a, b in grid]


def logit_adjustment_settings(class_sizes: np.ndarray, params: ReweightParams) -> list[Setting]:
    grid = [0.0] + [tau for tau in params.tau if tau != 0]
    return [Setting({"tau": tau}, prior_weights(class_sizes, tau)) for tau in grid]


def fit_reweighting(
    probs: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    class_sizes: np.ndarray,
    categories: Sequence[str],
    params: ReweightParams,
) -> dict[str, Any]:
    """Content of models/reweight/<arch>.json. Out-of-fold probs (N, C), labels and groups (N,); class_sizes (C,)."""
    videos, parts = _Videos(probs, labels, categories), deal_parts(labels, groups, params.cross_fit_folds, params.seed)
    before, ones = videos.score(probs.argmax(axis=1)), np.ones(len(class_sizes)).tolist()
    if params.method == "none":
        return {"method": "none", "used": False, "out_of_fold_before": before, "weights": ones}
    fits = videos.fits(class_sizes, params)
    settings = {name: fit(ALL) for name, fit in fits.items()}
    after = {name: videos.score(videos.predict(ALL, setting)) for name, setting in settings.items()}
    honest = {name: videos.score(cross_fitted(parts, fit, videos.predict)) for name, fit in fits.items()}
    methods = {
        name: {"in_sample_gain": after[name] - before, "cross_fitted_gain": honest[name] - before} for name in fits
    }
    used = is_worth_it(methods[params.method]["cross_fitted_gain"], params.min_gain)
    return {
        "method": params.method,
        **settings[params.method].values,
        "used": used,
        **methods[params.method],
        "out_of_fold_before": before,
        "out_of_fold_after": after[params.method],
        "methods": {name: methods[name] | settings[name].values for name in methods},
        "weights": settings[params.method].weights.tolist() if used else ones,
    }


def weights_fitted_on(
    rows: np.ndarray,
    probs: np.ndarray,
    labels: np.ndarray,
    class_sizes: np.ndarray,
    categories: Sequence[str],
    params: ReweightParams,
) -> np.ndarray:
    """(C,) weights of the method that params name, from these rows of the out-of-fold probs (N, C) alone."""
    if params.method == "none":
        return np.ones(len(class_sizes))
    return _Videos(probs, labels, categories).fits(class_sizes, params)[params.method](rows).weights


@dataclass(frozen=True)
class _Videos:
    """Out-of-fold probs (N, C) and labels (N,)."""

    probs: np.ndarray
    labels: np.ndarray
    categories: Sequence[str]

    def fits(self, class_sizes: np.ndarray, params: ReweightParams) -> dict[str, Callable[[Rows], Setting]]:
        return {
            "formula": self.from_grid(formula_settings(class_sizes, params)),
            "logit_adjustment": self.from_grid(logit_adjustment_settings(class_sizes, params)),
            "search": lambda rows: self.searched(rows, params),
        }

    def score(self, predicted: np.ndarray, rows: Rows = ALL) -> float:
        return official_scores(self.labels[rows], predicted, self.categories)["score"]

    def predict(self, rows: Rows, setting: Setting) -> np.ndarray:
        return (self.probs[rows] * setting.weights).argmax(axis=1)

    def from_grid(self, settings: Sequence[Setting]) -> Callable[[Rows], Setting]:
        return lambda rows: best(settings, lambda setting: self.score(self.predict(rows, setting), rows))

    def searched(self, rows: Rows, params: ReweightParams) -> Setting:
        labels, limits = self.labels[rows], (params.bound, params.steps, params.sweeps)
        weights = search_weights(self.probs[rows], labels, self.categories, *limits)
        return Setting({"smallest": float(weights.min()), "largest": float(weights.max())}, weights)
