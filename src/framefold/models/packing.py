"""Removal of padding: a text encoder's layers run on the real positions of a batch alone, one after the other.

Attention, which must keep videos apart, is PyTorch's for sequences of varying length where there is one; elsewhere
queries, keys and values are padded again for it alone.
"""

from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from framefold.models.attention import attend

HALF = (torch.float16, torch.bfloat16)
LARGEST_HEAD, HEAD_STEP = 256, 8  # units of a head that FlashAttention takes
OLDEST_GPU = (8, 0)  # Ampere


class Packing:
    """Where the real positions of a padded batch are.

    mask (B, L) bool; places (N,) int64, its flat indices as `data.places` gives them. RuntimeError (on a GPU as late as
    its errors are): they are not this mask's.
    """

    def __init__(self, mask: Tensor, places: Tensor):
        torch._assert_async(mask.flatten().index_select(0, places).sum() == mask.sum())
        self.mask, self.places = mask, places
        self.ends = F.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)  # (1 + B,) of the rows in the packed states

    def pack(self, states: Tensor) -> Tensor:
        """States (B, L, ...) at the places, (N, ...)."""
        return states.flatten(0, 1).index_select(0, self.places)

    def unpack(self, states: Tensor) -> Tensor:
        """States (N, ...) at their places, (B, L, ...); zeros elsewhere."""
        empty = states.new_zeros(self.mask.numel(), *states.shape[1:])
        return empty.index_copy(0, self.places, states).unflatten(0, self.mask.shape)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """`attention.attend` of every row of the batch to itself: query, key and value (N, heads, D), as the result."""
        if dropout == 0 and has_varlen(query):
            return self.varlen(query, key, value)
        query, key, value = (self.unpack(states).transpose(1, 2) for states in (query, key, value))  # (B, heads, L, D)
        mixed = attend(query, key, value, self.mask[:, None, None, :], dropout)
        return self.pack(mixed.transpose(1, 2))

    def varlen(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`attend` by a kernel that knows no padding, so nothing may fill up the places; it has no dropout."""
        from torch.nn.attention.varlen import varlen_attn  # takes a second

        length = self.mask.shape[1]  # a bound: the host does not know the longest row
        return cast(Tensor, varlen_attn(query, key, value, self.ends, self.ends, length, length))


def has_varlen(query: Tensor) -> bool:
    """Whether PyTorch's attention over sequences of varying length takes states (N, heads, D) like these."""
    width = query.shape[-1]
    if query.device.type != "cuda" or query.dtype not in HALF or width > LARGEST_HEAD or width % HEAD_STEP:
        return False
    return _gpu_has_varlen(query.device.index)


@cache
def _gpu_has_varlen(index: int) -> bool:
    available = torch.backends.cuda.is_flash_attention_available()
    return available and torch.cuda.get_device_capability(index) >= OLDEST_GPU
