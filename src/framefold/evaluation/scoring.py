"""Scores of the same predictors on the same targets, with intervals, for metrics/*.json."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from framefold.evaluation.metrics import Entry, paired_difference, score_entry
from framefold.evaluation.splits import Target
from framefold.params.ensemble import EnsembleParams

Predictions = Mapping[str, np.ndarray]  # part (out_of_fold, holdout, test) -> scores (N, C)


@dataclass(frozen=True)
class Scorer:
    targets: dict[str, Target]
    params: EnsembleParams

    def entries(self, predictions: Predictions) -> dict[str, Entry]:
        """An entry for each part that has both a target and predictions."""
        return {name: self.entry(name, predictions[name]) for name in self.targets if name in predictions}

    def entry(self, name: str, scores: np.ndarray) -> Entry:
        target = self.targets[name]
        return self.score(target.labels, scores[target.rows], target.categories)

    def score(self, labels: np.ndarray, scores: np.ndarray, categories: list[str]) -> Entry:
        return score_entry(labels, scores, categories, self.params.bootstrap, self.params.seed)

    def differences(self, first: Predictions, second: Predictions) -> dict[str, Entry]:
        """How much better `first` is than `second`, paired video by video."""
        return {
            name: paired_difference(
                target.labels,
                first[name][target.rows].argmax(axis=1),
                second[name][target.rows].argmax(axis=1),
                target.categories,
                self.params.bootstrap,
                self.params.seed,
            )
            for name, target in self.targets.items()
            if name in first and name in second
        }
