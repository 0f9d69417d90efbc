"""Running statistics of batch normalisation, computed anew for averaged weights.

The mean of several checkpoints' statistics is not what the mean of their weights sees (Izmailov et al. 2018, section
3.2), so SWA takes them from its training videos once more.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from framefold.models.backbone import Batch
from framefold.models.normalization import MaskedBatchNorm


class Moments:
    """Sums of the states that a layer is given, in float64."""

    def __init__(self, layer: MaskedBatchNorm):
        self.count, self.total, self.squares = (torch.zeros_like(layer.running_mean, dtype=torch.float64),) * 3

    def add(self, layer: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        """A forward pre-hook: take in states (..., C) where mask (...) is true."""
        states, mask = inputs
        kept, leading = states.double().masked_fill(~mask.unsqueeze(-1), 0.0), tuple(range(mask.ndim))
        self.count = self.count + mask.sum()
        self.total, self.squares = self.total + kept.sum(leading), self.squares + kept.square().sum(leading)

    def write_to(self, layer: MaskedBatchNorm) -> None:
        """Mean and unbiased variance; a layer that was given nothing keeps its own."""
        if not self.count.any():
            return
        mean = self.total / self.count
        deviations = (self.squares - self.count * mean.square()).clamp(min=0)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(deviations / (self.count - 1).clamp(min=1))


@torch.no_grad()
def recompute_statistics(model: nn.Module, batches: Callable[[], Iterable[Batch]]) -> None:
    """Set the running statistics of all MaskedBatchNorm layers of `model`, which is in evaluation mode, to those of all
    videos in `batches()` together: they do not depend on how these are cut into batches, nor on dropout.

    One pass a layer, in the order in which the model holds them: what a layer sees depends on those before it.
    """
    for layer in [module for module in model.modules() if isinstance(module, MaskedBatchNorm)]:
        moments = Moments(layer)
        hook = layer.register_forward_pre_hook(moments.add)
        try:
            for batch in batches():
                model(batch)
        finally:
            hook.remove()
        moments.write_to(layer)
