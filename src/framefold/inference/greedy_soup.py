"""Greedy soup (Wortsman et al. 2022) of a student's checkpoints: chosen on its validation fold.

The fold's score then speaks for itself. How much it flatters is told by choosing on one half of the fold and judging
on the other; halves are smaller than the fold, so that estimate leans to the careful side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from framefold.data.batches import VideoDataset
from framefold.evaluation.metrics import official_scores
from framefold.inference.cross_fitting import cross_fitted, deal_parts
from framefold.inference.predict import predict_logits

Soup = tuple[str, ...]  # names of checkpoints, oldest first
SEED = 0  # of the halves


def greedy_soup(names: Sequence[str], score: Callable[[Soup], float]) -> Soup:
    """The checkpoints of the soup, from `names`, oldest first; score(soup) is that of its mean.

    From the best one on, of equal ones the later, each next best joins if the score does not fall.
    """
    alone = {name: score((name,)) for name in names}
    best, *others = sorted(names, key=lambda name: (alone[name], names.index(name)), reverse=True)
    soup: Soup = (best,)
    reached = alone[best]
    for name in others:
        larger = tuple(sorted((*soup, name), key=names.index))
        if (found := score(larger)) >= reached:
            soup, reached = larger, found
    return soup


@dataclass(frozen=True)
class FoldVideos:
    """The validation videos of a fold: labels and duplicate groups (V,)."""

    labels: np.ndarray
    groups: np.ndarray
    categories: Sequence[str]

    def score(self, predicted: np.ndarray, rows: np.ndarray | slice = slice(None)) -> float:
        return official_scores(self.labels[rows], predicted, self.categories)["score"]


def choose_soup(
    names: Sequence[str], predict: Callable[[Soup], np.ndarray], fold: FoldVideos
) -> tuple[Soup, Mapping[str, float]]:
    """The soup, and what choosing it gains over the mean of all `names`: on the fold itself, and cross-fitted.

    predict(soup) -> (V,) labels of the fold's videos by the mean of these checkpoints.
    """

    def fit(rows: np.ndarray | slice) -> Soup:
        return greedy_soup(names, lambda soup: fold.score(predict(soup)[rows], rows))

    uniform, soup = fold.score(predict(tuple(names))), fit(slice(None))
    in_sample = fold.score(predict(soup)) - uniform
    halves = deal_parts(fold.labels, fold.groups, 2, SEED)
    if len(np.unique(halves)) < 2:  # one group of duplicates: nothing to judge on
        return soup, {"in_sample_gain": in_sample, "cross_fitted_gain": 0.0}
    honest = fold.score(cross_fitted(halves, fit, lambda rows, chosen: predict(chosen)[rows]))
    return soup, {"in_sample_gain": in_sample, "cross_fitted_gain": honest - uniform}


def soup_labels(
    mean: Callable[[Soup], nn.Module],
    dataset: VideoDataset,
    batch_size: int,
    device: torch.device,
    pause: Callable[[], None],
) -> Callable[[Soup], np.ndarray]:
    """`predict` of `choose_soup`; mean(soup) is the model of a soup, each of which is predicted once."""
    known: dict[Soup, np.ndarray] = {}

    def predict(soup: Soup) -> np.ndarray:
        if soup not in known:
            pause()
            logits = predict_logits(mean(soup), dataset, batch_size, device)
            known[soup] = logits.argmax(axis=1)
        return known[soup]

    return predict
