"""AdamW over parameter groups by role, and the learning-rate schedule: linear warm-up, then cosine to zero.

The schedule follows the share of the training's samples that is done, not steps: batches may differ in size.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

FUSED = ("cpu", "cuda")  # device types with a fused AdamW kernel


def parameter_groups(
    model: nn.Module, role_of: Callable[[str], str], learning_rates: Mapping[str, float], weight_decay: float
) -> list[dict]:
    """Trainable parameters by (role, decays), in the order of `learning_rates`; empty groups are left out.

    Biases, norms and scalars do not decay: they have fewer than two dimensions. ValueError: a role without a rate.
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (role, decays): [] for role in learning_rates for decays in (True, False)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (role_of(name), parameter.ndim >= 2)
            if key not in groups:
                raise ValueError(f"{name}: no learning rate for its role {key[0]!r}, only for {list(learning_rates)}")
            groups[key].append(parameter)
    return [
        {"params": parameters, "lr": learning_rates[role], "weight_decay": weight_decay if decays else 0.0}
        for (role, decays), parameters in groups.items()
        if parameters
    ]


def layered_rates(learning_rates: Mapping[str, float], decay: float, layers: int) -> dict[str, float]:
    """`learning_rates` with the role text cut into its depths (`depth_role`): the last layer keeps the rate of text,
    each one below has `decay` times that of the one above, the embeddings (depth 0) the lowest.

    Layer-wise decay as in ELECTRA (Clark et al. 2020), where the head's rate is also the base of the layers'.
    """
    depths = {depth_role(depth): learning_rates["text"] * decay ** (layers - depth) for depth in range(layers + 1)}
    return {role: rate for role, rate in learning_rates.items() if role != "text"} | depths


def depth_role(depth: int) -> str:
    """Role of the text encoder's parameters at a depth (`BertEncoder.depth_of`)."""
    return f"text-{depth}"


def build_optimizer(groups: list[dict], device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), in one fused kernel where the device has one, else over all tensors at once."""
    fused = device.type in FUSED
    return torch.optim.AdamW(groups, fused=fused or None, foreach=None if fused else True)


class Schedule:
    """Multiplies every group's peak rate by `lr_factor`. It has no state: the rates follow from the samples done."""

    def __init__(self, optimizer: torch.optim.Optimizer, samples: int, warmup: float):
        """samples: of the whole training; warmup: their share in which rates rise."""
        self.optimizer, self.samples, self.warmup = optimizer, samples, warmup
        self.peaks = [group["lr"] for group in optimizer.param_groups]

    def set_rates(self, done: int, size: int) -> float:
        """Set the rates of the step that takes `size` samples after `done`; returns that of the first group."""
        factor = lr_factor(done / self.samples, (done + size) / self.samples, self.warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return float(self.optimizer.param_groups[0]["lr"])


def lr_factor(before: float, after: float, warmup: float) -> float:
    """Share of the peak rate for a step: rises to 1 within the share `warmup` of all samples, then falls to 0.

    before, after: the share of all samples that is done before and after the step.
    """
    if before < warmup:
        return min(1.0, after / warmup)
    return 0.5 * (1 + math.cos(math.pi * (before - warmup) / (1 - warmup)))
