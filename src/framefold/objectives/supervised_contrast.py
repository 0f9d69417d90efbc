"""Supervised contrast: vectors of one class attract each other, all others repel (Khosla et al. 2020)."""

import torch
from torch import Tensor


def supervised_contrast(vectors: Tensor, classes: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Mean over the anchors i of -1/|P(i)| sum_{p in P(i)} log(exp(s_ip) / sum_{a != i} exp(s_ia)), a scalar.

    vectors (N, E): unit. classes (N,) int64. valid (N,) bool: other rows neither count nor repel. s: cosine /
    temperature; P(i): the other valid rows of i's class. Rows with an empty P are no anchors; zero if no row has one.
    """
    with torch.autocast(vectors.device.type, enabled=False):  # bf16 is too coarse for similarities over a temperature
        similarity = vectors.float() @ vectors.float().T / temperature  # (N, N)
    own = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    others = valid & ~own  # (N, N)
    positives = others & (classes == classes.unsqueeze(1)) & valid.unsqueeze(1)
    lowest = torch.finfo(similarity.dtype).min  # not -inf: a row may have no others
    log_share = similarity - similarity.masked_fill(~others, lowest).logsumexp(dim=1, keepdim=True)
    counts = positives.sum(dim=1)
    per_anchor = -log_share.masked_fill(~positives, 0.0).sum(dim=1) / counts.clamp(min=1)
    return per_anchor.sum() / (counts > 0).sum().clamp(min=1)
