"""Image-text contrast: matching pairs of a batch against all others (CLIP, Radford et al. 2021), or against what a
momentum encoder makes of more videos than a batch holds (MoCo, He et al. 2020; ALBEF, Li et al. 2021)."""

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


def masked_similarities(rows: Tensor, candidates: Tensor, excluded: Tensor, scale: Tensor) -> Tensor:
    """Logits (B, C) of unit vectors rows (B, D) and candidates (C, D), -inf where excluded (B, C)."""
    with torch.autocast(rows.device.type, enabled=False):
        similarity = rows.float() @ candidates.float().T * scale.float().clamp(max=MAX_SCALE)
    return similarity.masked_fill(excluded, -torch.inf)


def soft_info_nce(logits: Tensor, places: Tensor, target_logits: Tensor, alpha: float) -> Tensor:
    """Cross-entropy of each row with (1 - alpha) * one-hot + alpha * softmax(target_logits), (B,): one direction.

    logits (B, C), -inf for candidates that are none; places (B,) int64: the candidate that belongs to the row.
    target_logits (B, C): the momentum encoder's, -inf at the same places. One-hot targets call every other video
    wrong, though many would do; ALBEF's do not.
    """
    log_probs = F.log_softmax(logits, dim=-1)
    own = log_probs.gather(1, places.unsqueeze(1)).squeeze(1)
    soft = torch.softmax(target_logits.detach(), dim=-1)
    spread = (soft * log_probs.masked_fill(logits == -torch.inf, 0.0)).sum(dim=-1)  # 0 * -inf would be no number
    return -(1 - alpha) * own - alpha * spread


def retrieval_accuracy(a: Tensor, b: Tensor, valid: Tensor) -> Tensor:
    """Share of the valid rows of `a` (B, D) whose most similar valid row of `b` (B, D) is their own, a scalar."""
    similarity = (a.detach() @ b.detach().T).masked_fill(~valid, -torch.inf)
    hits = (similarity.argmax(dim=1) == torch.arange(len(a), device=a.device)) & valid
    return hits.sum() / valid.sum().clamp(min=1)
