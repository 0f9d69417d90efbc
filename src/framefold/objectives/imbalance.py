"""What sizes of classes say about weights and logits. Sizes are of the videos that train, and of no others.

A class without videos counts as one with a single video: its logit is pushed down, not cut off.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def shown_sizes(labels: npt.NDArray[np.integer], n_classes: int, oversampling: float) -> Floats:
    """(C,) how often an epoch shows each class, on average: its size n, or ~ n^(1 - oversampling) at the same total.

    So weights and logits correct what oversampling has left to correct.
    """
    sizes = np.bincount(labels, minlength=n_classes).astype(np.float64)
    shown = np.where(sizes > 0, np.maximum(sizes, 1) ** (1 - oversampling), 0.0)
    return shown * sizes.sum() / shown.sum()


def effective_number_weights(sizes: Floats, beta: float) -> Floats:
    """(C,) (1 - beta) / (1 - beta^n) (Cui et al. 2019), scaled to a mean of 1 over the videos.

    The paper scales to a mean of 1 over the classes: then the loss of a long tail is small beside other terms.
    """
    effective = -np.expm1(np.maximum(sizes, 1) * np.log(beta)) / (1 - beta)
    return sizes.sum() / (sizes / effective).sum() / effective


def log_priors(sizes: Floats) -> Floats:
    """(C,) log of each class's share of the videos; added to the logits it makes training Bayes-consistent for the
    balanced error (Menon et al. 2021)."""
    return np.log(np.maximum(sizes, 1) / sizes.sum())
