"""Distillation: soft labels of the teachers as targets (Hinton et al. 2015)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from framefold.objectives.classification import one_hot


def distillation_loss(
    logits: Tensor,
    soft: Tensor,
    total: Tensor | int,
    *,
    hard: float = 0.0,
    temperature: float = 1.0,
    min_confidence: float = 0.0,
) -> Tensor:
    """Mean over the rows that have a soft label p of (1 - hard) * T^2 * H(p_T, q_T) + hard * H(onehot(argmax p), q), a
    scalar; zero if no row has one.

    H: cross-entropy, for the student the Kullback-Leibler divergence and a constant. q = softmax(logits (B, C)), q_T =
    softmax(logits / T), and p_T, p^(1/T) normalised, is what the teacher's softmax at T would have said; T^2 keeps the
    gradient's size. soft (B, C): probabilities, times what the row weighs; a row of zeros is a video that no teacher
    may label. total (): how many rows the mean is over, those of other processes included. A row whose best
    probability is below min_confidence adds nothing and still counts in the mean, as in FixMatch (Sohn et al. 2020).
    The hard part is that of pseudo-labelling (Lee 2013).
    """
    soft, logits = soft.float(), logits.float()
    if min_confidence:
        soft = soft * is_sure(soft, min_confidence).unsqueeze(-1)
    loss = logits.new_zeros(())
    if hard < 1:
        targets = soft if temperature == 1 else soften(soft, temperature)
        loss = (1 - hard) * temperature**2 * _cross_entropy(logits / temperature, targets)
    if hard:
        best = one_hot(soft.argmax(dim=-1), soft.shape[-1])
        loss = loss + hard * _cross_entropy(logits, soft.sum(dim=-1, keepdim=True) * best)
    return loss / total


def is_sure(soft: Tensor, min_confidence: float) -> Tensor:
    """(B, C), whatever the rows weigh -> (B,) bool."""
    return soft.amax(dim=-1) >= min_confidence * soft.sum(dim=-1)


def soften(soft: Tensor, temperature: float) -> Tensor:
    """(B, C) -> p^(1/T) with the sums that the rows had; above 1 flatter, below sharper. Zeros stay zeros."""
    sums, highest = soft.sum(dim=-1, keepdim=True), soft.amax(dim=-1, keepdim=True)
    powers = (soft / highest.where(highest > 0, 1)) ** (1 / temperature)
    return sums * powers / powers.sum(dim=-1, keepdim=True).clamp_min(1)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed over rows (B, C), 0 where targets are 0."""
    return -(targets * F.log_softmax(logits, dim=-1)).sum(dim=-1).sum()


def agreement(logits: Tensor, soft: Tensor, total: Tensor | int) -> Tensor:
    """Share of the rows with a soft label on whose best class student and teacher agree, a scalar; total as above."""
    same = (logits.detach().argmax(dim=-1) == soft.argmax(dim=-1)) & has_soft_label(soft)
    return same.sum() / total


def has_soft_label(soft: Tensor) -> Tensor:
    """(B, C) -> (B,) bool."""
    return torch.any(soft > 0, dim=-1)
