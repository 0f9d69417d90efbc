"""Cross-entropy with the true labels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy, a scalar. logits (B, C), labels (B,) int64.

    `label_smoothing` e moves the target from one-hot to (1 - e) * one-hot + e / C (Szegedy et al. 2016).
    """
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


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
