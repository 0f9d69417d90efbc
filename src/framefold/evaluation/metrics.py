"""The official score of the WeChat Big Data Challenge 2022: the mean of level-1 and level-2 micro and macro F1.

Labels are indices into the sorted list of category ids (`LLSS`); level 1 is derived from level 2 (`LL`). Macro F1 has
sklearn's meaning: the mean over the classes that occur in the truth or in the prediction. All is computed on counts of
distinct (truth, prediction) outcomes, which is what makes 1,000 bootstrap resamples cheap.
"""

from collections.abc import Sequence

import numpy as np

from framefold.errors import UserError
from framefold.evaluation.bootstrap import percentile_interval, resampled_counts

Entry = dict[str, float | int]


def level1_of(categories: Sequence[str]) -> np.ndarray:
    """(C,) index of each category's level-1 group among the sorted groups."""
    groups = sorted({category[:2] for category in categories})
    return np.array([groups.index(category[:2]) for category in categories], dtype=np.int64)


def official_scores(truth: np.ndarray, predicted: np.ndarray, categories: Sequence[str]) -> dict[str, float]:
    """`score` and its four parts, from label indices (N,), (N,)."""
    outcomes, counts = distinct_outcomes(truth, predicted)
    parts = f1_parts(counts[None], outcomes[:, 0], outcomes[:, 1], level1_of(categories))
    return {name: float(values[0]) for name, values in parts.items()}


def score_entry(truth: np.ndarray, scores: np.ndarray, categories: Sequence[str], bootstrap: int, seed: int) -> Entry:
    """One entry of metrics.json: the official score with its 95 % interval, its parts, top-1 and top-5 accuracy.

    truth (N,): indices into `categories`; scores (N, C): logits or probabilities of the first C categories (a truth may
    hold categories that the model does not know: they stand behind its own and are never hit).
    """
    check_scores(truth, scores)
    predicted = scores.argmax(axis=1)
    entry: Entry = dict(official_scores(truth, predicted, categories))
    low, high = score_interval(truth, predicted, categories, bootstrap, seed)
    ranks = true_ranks(truth, scores)
    top = {"top1": float((predicted == truth).mean()), "top5": float((ranks < 5).mean())}
    return entry | {"score_low": low, "score_high": high, "n": len(truth)} | top


def score_interval(
    truth: np.ndarray, predicted: np.ndarray, categories: Sequence[str], bootstrap: int, seed: int
) -> tuple[float, float]:
    """95 % interval of the official score of labels (N,), or of the mean score of R models' labels (R, N)."""
    outcomes, counts = distinct_outcomes(truth, *np.atleast_2d(predicted))
    level1 = level1_of(categories)
    blocks = (mean_score(block, outcomes, level1) for block in resampled_counts(counts, bootstrap, seed))
    return percentile_interval(np.concatenate(list(blocks)))


def paired_difference(
    truth: np.ndarray, first: np.ndarray, second: np.ndarray, categories: Sequence[str], bootstrap: int, seed: int
) -> Entry:
    """Official score of the labels `first` minus that of `second` on the same samples, with its 95 % interval.

    Labels (N,), or (R, N) of R runs of each side (seeds): then the difference of the two mean scores. The samples are
    resampled, the same for all runs; the runs are not, so their spread is no part of the interval.
    """
    first, second = np.atleast_2d(first), np.atleast_2d(second)
    outcomes, counts = distinct_outcomes(truth, *first, *second)
    level1, sides = level1_of(categories), np.split(outcomes[:, 1:], [len(first)], axis=1)

    def difference(block: np.ndarray) -> np.ndarray:
        a, b = (mean_score(block, np.column_stack([outcomes[:, 0], side]), level1) for side in sides)
        return a - b

    resampled = np.concatenate([difference(block) for block in resampled_counts(counts, bootstrap, seed)])
    low, high = percentile_interval(resampled)
    return {"difference": float(difference(counts[None])[0]), "low": low, "high": high, "n": len(truth)}


def mean_score(counts: np.ndarray, outcomes: np.ndarray, level1: np.ndarray) -> np.ndarray:
    """(W,) mean official score of R runs under W weightings (W, U) of outcomes (U, 1 + R): truth, then their labels."""
    truth, *runs = outcomes.T
    return np.mean([f1_parts(counts, truth, labels, level1)["score"] for labels in runs], axis=0)


def distinct_outcomes(*labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows (U, len(labels)) of the label columns, and how often each occurs (U,)."""
    if len(labels[0]) == 0:
        raise ValueError("no samples to score")
    table = np.stack([np.asarray(column, dtype=np.int64) for column in labels], axis=1)
    return np.unique(table, axis=0, return_counts=True)


def f1_parts(counts: np.ndarray, truth: np.ndarray, predicted: np.ndarray, level1: np.ndarray) -> dict[str, np.ndarray]:
    """Score and parts (R,) of R weightings (R, U) of the outcomes (truth[u], predicted[u])."""
    lv1_micro, lv1_macro = micro_macro_f1(counts, level1[truth], level1[predicted])
    lv2_micro, lv2_macro = micro_macro_f1(counts, truth, predicted)
    parts = {"lv1_micro": lv1_micro, "lv1_macro": lv1_macro, "lv2_micro": lv2_micro, "lv2_macro": lv2_macro}
    return {"score": sum(parts.values(), np.zeros(len(counts))) / 4} | parts


def micro_macro_f1(counts: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R,), (R,). Micro F1 of single labels is accuracy; a class in neither truth nor prediction is not in macro."""
    hits, support, guesses = class_counts(counts, truth, predicted)
    f1, present = class_f1(hits, support, guesses), support + guesses > 0
    return hits.sum(axis=1) / counts.sum(axis=1), f1.sum(axis=1) / present.sum(axis=1)


def class_counts(
    counts: np.ndarray, truth: np.ndarray, predicted: np.ndarray, n_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class (R, C): true positives, samples, predictions. Sums of integers: exact at any thread count."""
    one_hot = np.eye(n_classes or int(max(truth.max(), predicted.max())) + 1)
    support, guesses = counts @ one_hot[truth], counts @ one_hot[predicted]
    return (counts * (truth == predicted)) @ one_hot[truth], support, guesses


def class_f1(hits: np.ndarray, support: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    return 2 * hits / np.maximum(support + guesses, 1)


def true_ranks(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) how many categories score above the true one; the number of categories where the model does not know it."""
    known = truth < scores.shape[1]
    own = np.where(known, scores[np.arange(len(truth)), np.where(known, truth, 0)], -np.inf)
    return (scores > own[:, None]).sum(axis=1)


def check_scores(truth: np.ndarray, scores: np.ndarray) -> None:
    if len(truth) != len(scores):
        raise UserError(f"scoring: {len(truth)} labels but {len(scores)} predictions; rebuild them with `dvc repro`")
    if not np.isfinite(scores).all():
        rows = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        raise UserError(
            f"scoring: {len(rows)} predictions hold NaN or infinity, first row {rows[0]}; retrain the model"
        )
