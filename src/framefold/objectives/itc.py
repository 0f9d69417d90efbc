"""Image-text contrast: matching pairs of a batch against all others (CLIP, Radford et al. 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SCALE = 100.0  # CLIP's bound on the learned inverse temperature


def info_nce(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE: row i of `a` belongs to row i of `b`, every other row is a negative.

    a, b (B, D): unit vectors. valid (B,) bool: other rows neither count nor are negatives. scale (): inverse
    temperature; learn its logarithm and pass `log_scale.exp()`.
    Returns the mean of both directions' cross-entropy, a scalar; zero if no row is valid.
    """
    with torch.autocast(a.device.type, enabled=False):  # bf16 has 8 bits: too coarse for similarities times the scale
        similarity = a.float() @ b.float().T * scale.float().clamp(max=MAX_SCALE)  # (B, B)
    own = torch.arange(len(a), device=a.device)
    excluded = ~valid & (own != own[:, None])  # (B, B); its own column is left to an invalid row: no row is all -inf
    both = [
        F.cross_entropy(logits.masked_fill(excluded, -torch.inf), own, reduction="none")
        for logits in (similarity, similarity.T)
    ]
    return ((both[0] + both[1]) * valid).sum() / (2 * valid.sum().clamp(min=1))


def retrieval_accuracy(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Share of the valid rows of `a` (B, D) whose most similar valid row of `b` (B, D) is their own, a scalar."""
    similarity = (a.detach() @ b.detach().T).masked_fill(~valid, -torch.inf)
    hits = (similarity.argmax(dim=1) == torch.arange(len(a), device=a.device)) & valid
    return hits.sum() / valid.sum().clamp(min=1)
