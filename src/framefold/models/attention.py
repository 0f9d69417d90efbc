"""Scaled dot-product attention, by the kernel that is fastest where it runs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """query (B, heads, Q, D) over key and value (B, heads, K, D) where mask (B, 1, 1, K) is true, (B, heads, Q, D).

    No row of `mask` may be all false. PyTorch's fused kernel, except in training on the CPU: its backward pass is
    slower there than plain products at the lengths of titles and frames (benchmarks/attention.py).
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, heads, Q, K)
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return F.dropout(weights, dropout).to(value.dtype) @ value
