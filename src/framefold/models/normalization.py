"""Batch normalisation over what a mask keeps, with the statistics of the global batch."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

MOMENTUM = 0.1  # of the running statistics, torch's own
EPSILON = 1e-5


class MaskedBatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of states (..., C) at the places that mask (...) keeps.

    What is masked may hold anything and comes out as zeros. In training the statistics are those of the global batch:
    all processes must call it alike. Every forward pass in training moves the running statistics, those on adversarial
    or partly hidden inputs too; a batch that keeps nothing leaves them as they are.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(..., C), float32."""
        masked = ~mask.unsqueeze(-1)
        states = states.float().masked_fill(masked, 0.0)
        mean, var = self._moments(states, mask) if self.training else (self.running_mean, self.running_var)
        scale = self.weight * torch.rsqrt(var + EPSILON)
        return ((states - mean) * scale + self.bias).masked_fill(masked, 0.0)

    def _moments(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,) of the global batch; both are sums, exchanged one after the other."""
        leading = tuple(range(mask.ndim))
        count = over_processes(mask.sum().float())
        mean = over_processes(states.sum(leading)) / count.clamp(min=1)
        deviations = (states - mean).masked_fill(~mask.unsqueeze(-1), 0.0)
        squares = over_processes(deviations.square().sum(leading))
        self._follow(mean.detach(), squares.detach() / (count - 1).clamp(min=1), count)
        return mean, squares / count.clamp(min=1)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics towards those of a batch of `count` () kept states."""
        weight = MOMENTUM * (count > 0)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(var, weight)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of all processes' tensors; backward: the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


def over_processes(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the processes of a training, with gradients to each."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return tensor
    return _SumOverProcesses.apply(tensor)


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether what the model says of a sample in training depends on the rest of its batch."""
    return any(isinstance(module, MaskedBatchNorm) for module in model.modules())
