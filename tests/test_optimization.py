"""Parameter groups and the learning-rate schedule.

pytest tests/test_optimization.py
"""

import pytest
import torch
from torch import nn

from framefold.training.optimization import build_optimizer, build_schedule, lr_factor, parameter_groups


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


def test_rate_rises_then_ends_at_zero() -> None:
    """Warm-up reaches the peak, the cosine is half-way at half time, and training ends at a rate of zero."""
    factors = [lr_factor(step, total_steps=110, warmup_steps=10) for step in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[109] < 0.001
    assert factors[110] == pytest.approx(0.0, abs=1e-12)
    assert factors[10:] == sorted(factors[10:], reverse=True)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.0), (1, 0.9), (3, 0.0), (5, 0.9)])
def test_short_runs_have_a_schedule(total: int, warmup: float) -> None:
    """One step, no warm-up, almost nothing but warm-up: rates stay within 0 and the peak, and the first is not 0."""
    optimizer = build_optimizer(
        parameter_groups(Model(), role_of, {"head": 0.1, "text": 0.1}, 0.0), torch.device("cpu")
    )
    schedule = build_schedule(optimizer, total, warmup)
    rates = []
    for _ in range(total):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] > 0
    assert all(0 <= rate <= 0.1 + 1e-9 for rate in rates)


def test_schedule_keeps_the_ratio_of_roles() -> None:
    optimizer = build_optimizer(
        parameter_groups(Model(), role_of, {"head": 0.1, "text": 0.01}, 0.0), torch.device("cpu")
    )
    schedule = build_schedule(optimizer, 10, 0.2)
    for _ in range(7):
        head, text = max(schedule.get_last_lr()), min(schedule.get_last_lr())
        assert head == pytest.approx(10 * text)
        optimizer.step()
        schedule.step()


def test_adamw_is_fused_where_it_can_be() -> None:
    """The one-kernel version: the step of a small model is bound by arithmetic, not by Python."""
    groups = parameter_groups(Model(), role_of, {"head": 0.1, "text": 0.1}, 0.0)
    assert build_optimizer(groups, torch.device("cpu")).defaults["fused"]
