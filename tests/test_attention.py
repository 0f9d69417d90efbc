"""Attention in training on the CPU equals PyTorch's own: .venv/bin/python -m pytest tests/test_attention.py"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from framefold.models.attention import attend


@pytest.fixture
def inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 2, length, 8, generator=generator) for length in (4, 7, 7))
    mask = torch.arange(7) < torch.tensor([7, 3, 1])[:, None, None, None]
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_(), mask


def test_states_equal_the_fused_kernels(inputs: tuple[Tensor, ...]):
    query, key, value, mask = inputs
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attend(query, key, value, mask, 0.0), expected)


def test_gradients_equal_the_fused_kernels(inputs: tuple[Tensor, ...]):
    *states, mask = inputs
    expected = torch.autograd.grad(F.scaled_dot_product_attention(*states, attn_mask=mask).square().sum(), states)
    found = torch.autograd.grad(attend(*states, mask, 0.0).square().sum(), states)
    torch.testing.assert_close(found, expected)


def test_masked_keys_change_nothing(inputs: tuple[Tensor, ...]):
    query, key, value, mask = inputs
    hidden = ~mask.transpose(-1, -2)  # (B, 1, K, 1)
    other = attend(query, key.masked_fill(hidden, 50.0), value.masked_fill(hidden, -9.0), mask, 0.0)
    torch.testing.assert_close(other, attend(query, key, value, mask, 0.0))


def test_dropout_drops(inputs: tuple[Tensor, ...]):
    query, key, value, mask = inputs
    assert not torch.equal(attend(query, key, value, mask, 0.5), attend(query, key, value, mask, 0.0))
