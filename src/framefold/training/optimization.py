"""AdamW over parameter groups by role, and the learning-rate schedule: linear warm-up, then cosine to zero."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

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


def build_optimizer(groups: list[dict], device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), in one fused kernel where the device has one, else over all tensors at once."""
    fused = device.type in FUSED
    return torch.optim.AdamW(groups, fused=fused or None, foreach=None if fused else True)


def build_schedule(optimizer: torch.optim.Optimizer, total_steps: int, warmup: float) -> LambdaLR:
    """Multiplies every group's rate by `lr_factor`; call `.step()` after each optimizer step, in every process."""
    warmup_steps = round(warmup * total_steps)
    return LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, warmup_steps))


def lr_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Share of the peak rate at `step` (from 0): rises to 1 in `warmup_steps`, then falls to 0 at `total_steps`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
