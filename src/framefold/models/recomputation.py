"""Layers whose inner states are computed once more in the backward pass instead of kept: time for memory."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Layers(nn.ModuleList):
    """Layers run one by one with `run`."""

    recompute = False  # a knob of the machine (runtime `checkpointing`), so not part of any config

    def run(self, layer: nn.Module, *inputs: Any) -> Any:
        """layer(*inputs); where gradients are wanted and `recompute` is set, only its inputs are kept for them."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)  # with the same dropout the second time
        return layer(*inputs)


def recompute_layers(model: nn.Module, recompute: bool) -> None:
    """Set it for all `Layers` of a model."""
    for module in model.modules():
        if isinstance(module, Layers):
            module.recompute = recompute
