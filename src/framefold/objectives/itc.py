"""Image-text contrast: matching pairs of a batch against all others (CLIP, Radford et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SCALE = 100.0  # CLIP's bound on the learned inverse temperature


def info_nce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE: row i of `a` belongs to row i of `b`, every other row is a negative.

    a, b (B, D): unit vectors. scale (): inverse temperature; learn its logarithm and pass `log_scale.exp()`.
    Returns the mean of both directions' cross-entropy, a scalar; zero for no rows.
    """
    with torch.autocast(a.device.type, enabled=False):  # bf16 has 8 bits: too coarse for similarities times the scale
        similarity = a.float() @ b.float().T * scale.float().clamp(max=MAX_SCALE)  # (B, B)
    target = torch.arange(len(a), device=a.device)
    both = [F.cross_entropy(logits, target, reduction="sum") for logits in (similarity, similarity.T)]
    return (both[0] + both[1]) / max(2 * len(a), 1)


def retrieval_accuracy(a: Tensor, b: Tensor) -> Tensor:
    """Share of the rows of `a` (B, D) whose most similar row of `b` (B, D) is their own, a scalar; zero for no rows."""
    if len(a) == 0:
        return torch.zeros((), device=a.device)
    nearest = (a.detach() @ b.detach().T).argmax(dim=1)  # (B,)
    return (nearest == torch.arange(len(a), device=a.device)).float().mean()
