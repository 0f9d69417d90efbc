"""Distillation: soft labels of the teachers as targets (Hinton et al. 2015)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_cross_entropy(logits: Tensor, soft: Tensor, total: Tensor | int) -> Tensor:
    """Mean cross-entropy with soft labels over the rows that have one, a scalar; zero if no row has.

    logits (B, C). soft (B, C): probabilities; a row of zeros is a video that no teacher may label. total (): how many
    rows the mean is over, those of other processes included.
    """
    per_row = -(soft.float() * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1)  # (B,), 0 where soft is 0
    return per_row.sum() / total


def agreement(logits: Tensor, soft: Tensor, total: Tensor | int) -> Tensor:
    """Share of the rows with a soft label on whose best class student and teacher agree, a scalar; total as above."""
    same = (logits.detach().argmax(dim=-1) == soft.argmax(dim=-1)) & has_soft_label(soft)
    return same.sum() / total


def has_soft_label(soft: Tensor) -> Tensor:
    """(B, C) -> (B,) bool."""
    return torch.any(soft > 0, dim=-1)
