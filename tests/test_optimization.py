"""Parameter groups and the learning-rate schedule.

pytest tests/test_optimization.py
"""

import math

import pytest
import torch
from torch import nn

from framefold.models.bert import BertConfig, BertEncoder
from framefold.training.optimization import Schedule, build_optimizer, layered_rates, lr_factor, parameter_groups


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Embedding(4, 3)
        self.head, self.norm = nn.Linear(3, 2), nn.LayerNorm(3)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)


def role_of(name: str) -> str:
    return "text" if name.startswith("text") else "head"


def groups_of(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Parameter name -> its learning rate and weight decay."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, role_of, {"head": 0.1, "text": 0.01}, weight_decay=0.5)
    return {names[parameter]: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}


def test_roles_and_decay() -> None:
    """Each parameter has the rate of its role; biases, norms and scalars do not decay; frozen ones are left out."""
    assert groups_of(Model()) == {
        "text.weight": (0.01, 0.5),
        "head.weight": (0.1, 0.5),
        "head.bias": (0.1, 0.0),
        "norm.weight": (0.1, 0.0),
        "norm.bias": (0.1, 0.0),
        "scale": (0.1, 0.0),
    }


def test_role_without_a_rate_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"text\.weight: no learning rate for its role 'text'"):
        parameter_groups(Model(), role_of, {"head": 0.1}, weight_decay=0.0)


def test_layer_decay_by_a_table() -> None:
    """Three layers at 0.8: the last has the rate of text, the embeddings 0.8^3 of it; other roles keep theirs."""
    found = layered_rates({"head": 0.1, "text": 0.05, "vision": 0.01}, 0.8, 3)
    expected = {"head": 0.1, "vision": 0.01, "text-3": 0.05, "text-2": 0.04, "text-1": 0.032, "text-0": 0.0256}
    assert found == pytest.approx(expected)


def test_every_parameter_of_the_text_encoder_has_its_depth() -> None:
    """By the names of published checkpoints, layer 10 after layer 9."""
    encoder = BertEncoder(BertConfig(5, 4, 11, 2, 8, 6, 2, 0.0, 0.0))
    depths = {name: encoder.depth_of(name) for name, _ in encoder.named_parameters()}
    assert {depth for name, depth in depths.items() if name.startswith("embeddings.")} == {0}
    for layer in range(11):
        own = [depth for name, depth in depths.items() if name.startswith(f"encoder.layer.{layer}.")]
        assert own == [layer + 1] * 16


def rates(sizes: list[int], warmup: float, roles: dict[str, float]) -> list[list[float]]:
    """Of every group at every step of a training whose batches have these sizes."""
    optimizer = build_optimizer(parameter_groups(Model(), role_of, roles, 0.0), torch.device("cpu"))
    schedule, done, seen = Schedule(optimizer, sum(sizes), warmup), 0, []
    for size in sizes:
        first = schedule.set_rates(done, size)
        seen.append([group["lr"] for group in optimizer.param_groups])
        assert first == seen[-1][0]
        done += size
    return seen


def by_steps(step: int, steps: int, warmup_steps: int) -> float:
    """The same schedule by steps."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))


def test_rate_rises_then_ends_at_zero() -> None:
    """Warm-up reaches the peak, the cosine is half-way at half time, and training ends at a rate of zero."""
    factors = [lr_factor(step / 110, (step + 1) / 110, warmup=10 / 110) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[109] < 0.001
    assert factors[110] == pytest.approx(0.0, abs=1e-12)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_equal_batches_have_the_rates_of_a_schedule_by_steps() -> None:
    found = rates([32] * 50, 0.1, {"head": 1.0, "text": 1.0})
    assert [step[0] for step in found] == pytest.approx([by_steps(step, 50, 5) for step in range(50)], abs=1e-9)


def test_the_rate_depends_on_the_samples_done_however_they_are_cut() -> None:
    """After warm-up the rate at 400 of 1,000 samples is that of equal batches, after large ones as after small ones."""
    expected = rates([10] * 100, 0.1, {"head": 1.0, "text": 1.0})[40]
    for sizes in ([50] * 8 + [10] * 60, [5] * 80 + [60] * 10):
        place = 8 if sizes[0] == 50 else 80
        assert rates(sizes, 0.1, {"head": 1.0, "text": 1.0})[place] == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.9), (3, 0.0), (5, 0.9)])
def test_short_runs_have_a_schedule(steps: int, warmup: float) -> None:
    """One step, no warm-up, almost nothing but warm-up: rates stay within 0 and the peak, and the first is not 0."""
    found = [step[0] for step in rates([7] * steps, warmup, {"head": 0.1, "text": 0.1})]
    assert found[0] > 0
    assert all(0 <= rate <= 0.1 + 1e-9 for rate in found)


def test_schedule_keeps_the_ratio_of_roles() -> None:
    for step in rates([4] * 7, 0.2, {"head": 0.1, "text": 0.01}):
        assert max(step) == pytest.approx(10 * min(step))


def test_adamw_is_fused_where_it_can_be() -> None:
    """The one-kernel version: the step of a small model is bound by arithmetic, not by Python."""
    groups = parameter_groups(Model(), role_of, {"head": 0.1, "text": 0.1}, 0.0)
    assert build_optimizer(groups, torch.device("cpu")).defaults["fused"]
