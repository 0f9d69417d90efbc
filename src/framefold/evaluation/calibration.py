"""Are probabilities what they say? Temperature scaling, negative log-likelihood and expected calibration error.

Guo et al. 2017, On calibration of modern neural networks.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Probs = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]

BOUNDS = 0.05, 20.0  # temperatures that are looked at
BINS = 15


def fit_temperature(probs_at: Callable[[float], Probs], truth: Labels) -> float:
    """The temperature T for which probs_at(T), (N, C), give the labels (N,) the least negative log-likelihood."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(probs_at(float(np.exp(log_temperature))), truth)

    found = minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def calibration(probs: Probs, truth: Labels) -> dict[str, float]:
    ece = expected_calibration_error(probs.max(axis=1), probs.argmax(axis=1) == truth)
    return {"nll": negative_log_likelihood(probs, truth), "ece": ece}


def negative_log_likelihood(probs: Probs, truth: Labels) -> float:
    """Mean over the rows (N, C) of -log p of the label."""
    return float(-np.log(np.maximum(probs[np.arange(len(truth)), truth], np.finfo(np.float64).tiny)).mean())


def expected_calibration_error(confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_]) -> float:
    """Mean over answers (N,) of |accuracy - mean confidence| of the answer's bin; BINS bins of equal width."""
    confidence = confidence.astype(np.float64)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.abs(np.bincount(bins, correct - confidence, minlength=BINS))
    return float(gaps.sum() / len(confidence))
