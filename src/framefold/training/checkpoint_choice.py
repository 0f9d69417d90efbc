"""How optimistic it is to keep a student's checkpoints by their score on the fold that judges it afterwards.

Chosen by one half of the fold and judged on the other, a choice shows what it is really worth; on the half that it was
made on, what the fold score claims.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from framefold.data.folds import Folds
from framefold.evaluation.metrics import official_scores
from framefold.inference.cross_fitting import deal_parts
from framefold.params.finetune import CheckpointParams
from framefold.training.classifiers import FoldData, kept_epochs

SEED = 0


def fold_halves(data: FoldData, labeled: Folds) -> npt.NDArray[np.int64] | None:
    """(V,) 0 or 1 for each validation video, duplicates together; None where there are not two halves."""
    rows = data.validation.rows
    halves = deal_parts(labeled.label[rows], labeled.group[rows], 2, SEED) if len(rows) else np.zeros(0, np.int64)
    return halves if len(np.unique(halves)) == 2 else None


def half_scores(data: FoldData, logits: npt.NDArray[np.float32], halves: npt.NDArray[np.int64]) -> list[float]:
    """Official score of logits (V, C) on each half of the fold."""
    assert data.validation.labels is not None
    truth, predicted = data.validation.labels, logits.argmax(axis=1)
    parts = [np.flatnonzero(halves == half) for half in (0, 1)]
    return [official_scores(truth[part], predicted[part], data.categories)["score"] for part in parts]


def top_gains(epochs: Sequence[Mapping[str, Any]], params: CheckpointParams) -> dict[str, float]:
    """What the best epochs' checkpoints have over the last ones, as many of them: the mean of their scores.

    epochs: "ema_halves" of each. In sample: chosen and judged on the same half; cross-fitted: on one and the other.
    Halves are smaller than the fold, so both choices are noisier than the one that was made.
    """
    scores = np.array([epoch["ema_halves"] for epoch in epochs])  # (E, 2)
    last = scores[-params.keep :].mean(axis=0)
    chosen = [kept_epochs(scores[:, half].tolist(), params) for half in (0, 1)]
    own, other = (np.mean([scores[chosen[h], h ^ flip].mean() - last[h ^ flip] for h in (0, 1)]) for flip in (0, 1))
    return {"in_sample_gain": float(own), "cross_fitted_gain": float(other)}
