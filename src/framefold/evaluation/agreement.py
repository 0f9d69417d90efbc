"""Is the out-of-fold score honest? Like with like: it has one model a video, so it is held against single models.

The mean score of the fold models, each alone on the holdout or the test videos, should be the out-of-fold score, within
what chance allows. It lies below where validation labels reached the models (distillation from teachers that saw them,
checkpoints chosen by fold score); then the difference is how optimistic the out-of-fold score is.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from framefold.evaluation.bootstrap import percentile_interval, resampled_counts
from framefold.evaluation.metrics import Entry, distinct_outcomes, f1_parts, level1_of, official_scores


def optimism(
    validation: tuple[np.ndarray, np.ndarray],
    truth: np.ndarray,
    predicted: Sequence[np.ndarray],
    categories: Sequence[str],
    bootstrap: int,
    seed: int,
) -> Entry:
    """Out-of-fold score minus the mean score of single models elsewhere, with its 95 % interval.

    validation: truth (M,) and predicted labels (M,) out of fold. truth (N,); predicted: labels (N,) of each model.
    Macro F1 depends on how many samples it is measured on, and of which classes (rare ones go missing), so `expected`,
    from which the mean is subtracted, is the out-of-fold score moved by what N samples with as many of each class as
    `truth` has do to it, instead of M. Both sides are resampled.
    """
    level1 = level1_of(categories)
    own, counts = distinct_outcomes(*validation)
    at_own_size = np.concatenate([_score(b, own, 1, level1) for b in resampled_counts(counts, bootstrap, seed)])
    like_this = [_score(b, own, 1, level1) for b in _resampled_like(truth, own, counts, bootstrap, seed + 1)]
    shift = float(np.concatenate(like_this).mean() - at_own_size.mean())
    expected = official_scores(*validation, categories)["score"] + shift
    single, resampled = _mean_scores(truth, predicted, level1, bootstrap, seed + 2)
    unbiased = resampled - (resampled.mean() - single)  # resamples lack more classes than the sample does
    low, high = percentile_interval(at_own_size - (at_own_size.mean() - expected) - unbiased)
    return {
        "expected": expected,
        "single_models": single,
        "difference": expected - single,
        "low": low,
        "high": high,
        "n": len(truth),
        "models": len(predicted),
    }


def _resampled_like(
    truth: np.ndarray, outcomes: np.ndarray, counts: np.ndarray, bootstrap: int, seed: int
) -> Iterator[np.ndarray]:
    """Blocks of counts per outcome (U, 2) of samples that hold as many of each class as `truth` does.

    A class that no outcome has is left out.
    """
    classes, wanted = np.unique(truth, return_counts=True)
    per_class = []
    for number, (label, size) in enumerate(zip(classes, wanted, strict=True)):
        own = np.where(outcomes[:, 0] == label, counts, 0)
        if own.any():
            per_class.append(resampled_counts(own, bootstrap, seed + 1000 * number, size=int(size)))
    return (np.sum(blocks, axis=0) for blocks in zip(*per_class, strict=True))


def _mean_scores(
    truth: np.ndarray, predicted: Sequence[np.ndarray], level1: np.ndarray, bootstrap: int, seed: int
) -> tuple[float, np.ndarray]:
    """The models' mean score, and that of every resample (R,), all models on the same videos."""
    outcomes, counts = distinct_outcomes(truth, *predicted)

    def mean(block: np.ndarray) -> np.ndarray:
        return np.mean([_score(block, outcomes, place, level1) for place in range(1, len(predicted) + 1)], axis=0)

    return float(mean(counts[None])[0]), np.concatenate([mean(b) for b in resampled_counts(counts, bootstrap, seed)])


def _score(block: np.ndarray, outcomes: np.ndarray, place: int, level1: np.ndarray) -> np.ndarray:
    return f1_parts(block, outcomes[:, 0], outcomes[:, place], level1)["score"]
