"""Steps of the training loop against a loop written out here: pytest tests/test_loop_steps.py"""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop_resume import EPOCHS, SIZE, STEPS, ToyBatches, ToyTask
from torch import Tensor, nn

from framefold.params.training import AdversarialParams, OptimizationParams
from framefold.scratch import Scratch
from framefold.training.loop import TrainResult, train
from framefold.training.sharing import Share

EPSILON, DECAY, BOUND, TOTAL = 0.5, 0.4, 0.05, EPOCHS * STEPS
WARM = TOTAL // 3
RATES = {"head": 0.01, "text": 0.02}


def trained(task: ToyTask) -> TrainResult:
    params = OptimizationParams(
        epochs=EPOCHS, batch_size=SIZE, weight_decay=0.1, warmup=1 / 3, max_grad_norm=BOUND, ema_decay=DECAY
    )
    fgm = AdversarialParams(method="fgm", epsilon=EPSILON, alpha=0.3, steps=1)
    with Scratch("toy@0", {}) as scratch:
        return train(
            task,
            ToyBatches,
            params,
            learning_rates=RATES,
            seed=0,
            precision="fp32",
            scratch=scratch,
            adversarial=fgm,
        )


def by_hand(model: nn.Module, averages: list[nn.Module] | None = None) -> tuple[nn.Module, nn.Module, list[float]]:
    """Model, EMA and the norms of gradients before they are clipped; `averages` gets the EMA before each step and at
    the end."""
    ema, norms = copy.deepcopy(model), []
    words, weight, bias = model.parameters()
    peaks = [(words, RATES["text"], 0.1), (weight, RATES["head"], 0.1), (bias, RATES["head"], 0.0)]
    groups = [{"params": [tensor], "lr": rate, "weight_decay": decay} for tensor, rate, decay in peaks]
    optimizer = torch.optim.AdamW(groups, foreach=False)
    for step in range(TOTAL):
        if averages is not None:
            averages.append(copy.deepcopy(ema))
        batch = ToyBatches(step // STEPS)[step % STEPS]
        clean = gradients(model, batch)
        attacked = copy.deepcopy(model)
        attacked.word_embeddings.weight.data += EPSILON * clean[0] / clean[0].norm()
        summed = [one + other for one, other in zip(clean, gradients(attacked, batch), strict=True)]
        norms.append(math.sqrt(sum(float((tensor**2).sum()) for tensor in summed)))
        for parameter, gradient in zip(model.parameters(), summed, strict=True):
            parameter.grad = gradient * min(1.0, BOUND / (norms[-1] + 1e-6))  # as torch clips
        for group, (_, rate, _) in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = rate * factor(step)
        optimizer.step()
        kept = min(DECAY, (1 + step) / (10 + step))
        for average, current in zip(ema.parameters(), model.parameters(), strict=True):
            average.data = kept * average.data + (1 - kept) * current.data
    if averages is not None:
        averages.append(ema)
    return model, ema, norms


class WithAverage(ToyTask):
    """A task that asks for the average, and keeps what it finds there at every loss."""

    def __init__(self) -> None:
        super().__init__(dropout=0.0)
        self.average: Any = None
        self.seen = list[list[Tensor]]()

    def loss(self, batch: dict[str, Tensor], share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        self.seen.append([parameter.detach().clone() for parameter in self.average.parameters()])
        return super().loss(batch, share)


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    loss = nn.functional.cross_entropy(model(batch), batch["label"])
    return torch.autograd.grad(loss, list(model.parameters()))


def factor(step: int) -> float:
    if step < WARM:
        return (step + 1) / WARM
    return (1 + math.cos(math.pi * (step - WARM) / (TOTAL - WARM))) / 2


def test_a_training_is_what_its_methods_say_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FGM, clipping, AdamW, schedule and ramped EMA in their order, in float64, with a bound that clips every step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    task = ToyTask(dropout=0.0)
    task.model.double()
    model, ema, norms = by_hand(copy.deepcopy(task.model))
    found = trained(task)
    assert min(norms) > 2 * BOUND
    assert [row["grad_norm"] for row in found.history] == pytest.approx(norms, rel=1e-5)
    for one, expected in ((found.model, model), (found.ema, ema)):
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(one.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_a_task_that_asks_for_the_average_has_it_as_it_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teacher of self-distillation and momentum encoder: at every step the EMA after the step before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    task = WithAverage()
    task.model.double()
    averages = list[nn.Module]()
    by_hand(copy.deepcopy(task.model), averages)
    trained(task)
    assert len(task.seen) == 2 * TOTAL  # FGM asks twice a step
    for step, average in enumerate(averages[:-1]):
        for found in task.seen[2 * step : 2 * step + 2]:
            for one, expected in zip(found, average.parameters(), strict=True):
                torch.testing.assert_close(one, expected.data, rtol=1e-9, atol=1e-12)
    assert not torch.equal(task.seen[0][0], task.seen[-1][0])
