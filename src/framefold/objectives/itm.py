"""Image-text matching: does this text belong to these frames (ViLBERT, Lu et al. 2019; UNITER, Chen et al. 2020)."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

Rows = npt.NDArray[np.int64]


def mismatched_pairs(share: float, batch_size: int) -> tuple[Rows, Rows]:
    """Rows (M,) whose text is shown with the frames of other rows (M,); M is `share` of the batch, rounded up.

    Rows are taken at even steps and partners half a batch away, since a batch may be sorted by length. A batch of one
    has no pairs. Each row stands one place further in its step than the last: processes take the rows of a batch in
    turn, and each then has some of the pairs.
    """
    count = math.ceil(share * batch_size) if batch_size > 1 else 0
    number = np.arange(count)
    rows = number * batch_size // max(count, 1) + number % max(batch_size // max(count, 1), 1)
    return rows, (rows + batch_size // 2) % max(batch_size, 1)


@dataclass(frozen=True)
class Pairs:
    """Logits (P,) of "belongs together", which of them count (P,) bool, and how many (): those of all processes."""

    logits: Tensor
    valid: Tensor
    total: Tensor

    def mean(self, values: Tensor) -> Tensor:
        return (values * self.valid).sum() / self.total


def matching_loss(matched: Pairs, mismatched: Pairs) -> Tensor:
    """Binary cross-entropy, a scalar: both kinds of pairs weigh the same, however many there are of each."""
    right, wrong = matched.mean(F.softplus(-matched.logits.float())), F.softplus(mismatched.logits.float())
    return (right + mismatched.mean(wrong)) / 2


def matching_accuracy(matched: Pairs, mismatched: Pairs) -> Tensor:
    """Balanced accuracy, a scalar: 0.5 is chance."""
    right, wrong = matched.mean(matched.logits.detach() > 0), mismatched.mean(mismatched.logits.detach() <= 0)
    return (right + wrong) / 2
