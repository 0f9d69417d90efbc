"""Image-text matching: does this text belong to these frames (ViLBERT, Lu et al. 2019; UNITER, Chen et al. 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mismatched_pairs(share: float, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows (M,) whose text is shown with the frames of other rows (M,); M is `share` of the batch, rounded up.

    Rows are taken at even steps and partners half a batch away, since a batch may be sorted by length. A batch of one
    has no pairs.
    """
    count = math.ceil(share * batch_size) if batch_size > 1 else 0
    rows = torch.arange(count, device=device) * batch_size // max(count, 1)
    return rows, (rows + batch_size // 2) % batch_size


def matching_loss(matched: Tensor, mismatched: Tensor) -> Tensor:
    """Binary cross-entropy, a scalar: both kinds of pairs weigh the same, however many there are of each.

    matched (P,), mismatched (N,): logits of "belongs together".
    """
    return (_mean(F.softplus(-matched.float())) + _mean(F.softplus(mismatched.float()))) / 2


def matching_accuracy(matched: Tensor, mismatched: Tensor) -> Tensor:
    """Balanced accuracy, a scalar: 0.5 is chance."""
    return (_mean((matched.detach() > 0).float()) + _mean((mismatched.detach() <= 0).float())) / 2


def _mean(values: Tensor) -> Tensor:
    """0 of nothing, where `mean` is NaN."""
    return values.sum() / max(len(values), 1)
