"""Cross-entropy with labels: plain, and focal and weighted by class for long tails."""

import torch
import torch.nn.functional as F
from torch import Tensor

EASY = 1e-6  # 1 - p below this counts as this: for gamma < 1 the slope of (1 - p)^gamma has no bound


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy, a scalar. logits (B, C); labels (B,) int64 classes.

    `label_smoothing` e moves the target from one-hot to (1 - e) * one-hot + e / C (Szegedy et al. 2016).
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def focal_cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float, gamma: float, class_weights: Tensor | None
) -> Tensor:
    """Mean over the rows of w * sum_c t_c (1 - p_c)^gamma (-log p_c), a scalar.

    logits and labels as in `cross_entropy`; p: softmax of a row; t: its smoothed target; w: that of class_weights (C,)
    of its label, 1 without weights. The focal loss of Lin et al. 2017 and, with the weights of
    `imbalance.effective_number_weights`, the class-balanced one of Cui et al. 2019.
    """
    log_probs = F.log_softmax(logits.float(), dim=-1)  # (B, C)
    smoothed = one_hot(labels, logits.shape[-1]) * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    losses = -smoothed * log_probs
    if gamma:
        losses = losses * (-torch.expm1(log_probs)).clamp_min(EASY) ** gamma
    per_row = losses.sum(dim=-1)
    return (per_row if class_weights is None else per_row * class_weights.index_select(0, labels)).mean()


def one_hot(labels: Tensor, n_classes: int) -> Tensor:
    """(B,) -> (B, C) float32; torch's own looks at the values, for which the host would wait."""
    return (labels.unsqueeze(-1) == torch.arange(n_classes, device=labels.device)).float()


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the rows (B, C) whose label has the highest logit, a scalar."""
    return hits(logits, labels).mean()


@torch.no_grad()
def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the label (N,) has the highest logit (N, C), (N,) float32; of k that are equally high each counts 1 / k.

    In bf16 logits are often equal. `argmax` over a vocabulary takes ten times as long.
    """
    highest = logits >= logits.amax(dim=-1, keepdim=True)  # (N, C)
    return highest.gather(-1, labels.unsqueeze(-1)).squeeze(-1).float() / highest.sum(dim=-1)
