"""EMA of the weights during training, and the mean of finished checkpoints (SWA)."""

import copy
import itertools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


class ExponentialAverage:
    """EMA of a model's parameters and floating-point buffers; integer buffers are copied, and so are all buffers of a
    module with the attribute `not_averaged`.

    The decay of update t is min(decay, (1 + t) / (10 + t)), so that a short run is not dominated by its start weights
    (as in Tensorflow's ExponentialMovingAverage). With decay 0 nothing is kept: `model` is the trained model itself.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates, self.source = decay, 0, model
        self.averaged = copy.deepcopy(model).requires_grad_(False) if decay else None

    @property
    def model(self) -> nn.Module:
        return self.source if self.averaged is None else self.averaged

    @torch.no_grad()
    def update(self) -> None:
        """Take in the trained model's present weights; call once after each optimizer step.

        Not by AveragedModel: its counter is a tensor, and the host waits for the device to hand it over.
        """
        if self.averaged is None:
            return
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        pairs: dict[tuple[torch.dtype, bool], tuple[list[Tensor], list[Tensor]]] = {}
        for (averaged, copied), (current, _) in zip(_tensors(self.averaged), _tensors(self.source), strict=True):
            both = pairs.setdefault((averaged.dtype, copied), ([], []))
            for tensors, tensor in zip(both, (averaged, current), strict=True):
                tensors.append(tensor)
        for (_, copied), both in pairs.items():
            blend(*both, 1.0 if copied else weight)
        self.updates += 1

    def state_dict(self) -> dict:
        return {"updates": self.updates, "model": self.averaged.state_dict() if self.averaged else None}

    def load_state_dict(self, state: Mapping) -> None:
        self.updates = state["updates"]
        if self.averaged is not None:
            self.averaged.load_state_dict(state["model"])


def _tensors(model: nn.Module) -> Iterable[tuple[Tensor, bool]]:
    """Parameters and buffers, and whether they are copied as they are."""
    buffers = (
        (buffer, hasattr(module, "not_averaged"))
        for module in model.modules()
        for buffer in module.buffers(recurse=False)
    )
    return itertools.chain(((parameter, False) for parameter in model.parameters()), buffers)


def average_checkpoints(model: nn.Module, states: Iterable[Mapping[str, Tensor]]) -> nn.Module:
    """SWA (Izmailov et al. 2018): the equal mean of several checkpoints of `model`, one at a time in memory.

    Floating-point buffers are averaged as well, integer buffers come from the last checkpoint. Loads are strict.
    `model` ends with the last checkpoint; the mean is a new module. ValueError: no checkpoint.
    """
    averaged = AveragedModel(model, multi_avg_fn=_running_mean, use_buffers=True)
    for state in states:
        model.load_state_dict(state)
        averaged.update_parameters(model)
    if averaged.n_averaged == 0:
        raise ValueError("no checkpoint to average")
    return averaged.module


def _running_mean(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
    blend(averaged, current, 1 / (int(count) + 1))


@torch.no_grad()
def blend(averaged: Tensors, current: Tensors, weight: float) -> None:
    """averaged += weight * (current - averaged), in place; tensors of one dtype; integers are copied."""
    if averaged[0].is_floating_point():
        torch._foreach_lerp_(list(averaged), list(current), weight)
    else:
        torch._foreach_copy_(list(averaged), list(current))
