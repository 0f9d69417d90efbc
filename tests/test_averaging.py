"""EMA and SWA of weights: the numbers, the buffers, and that averaging keeps up with nothing it should not.

pytest tests/test_averaging.py
"""

import pytest
import torch
from torch import nn

from framefold.training.averaging import ExponentialAverage, average_checkpoints


def model_with(value: float) -> nn.Module:
    """A module whose every parameter and floating-point buffer is `value`, with a counter."""
    module = nn.BatchNorm1d(3)
    with torch.no_grad():
        for tensor in [*module.parameters(), module.running_mean, module.running_var]:
            tensor.fill_(value)
        module.num_batches_tracked.fill_(int(value))
    return module


def test_ema_follows_the_ramped_decay() -> None:
    """Update t keeps min(decay, (1 + t) / (10 + t)) of the average: a short run forgets its start weights."""
    module = model_with(0.0)
    ema = ExponentialAverage(module, decay=0.3)
    expected = 0.0
    for step in range(8):
        with torch.no_grad():
            module.weight.fill_(step + 1.0)
        ema.update()
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
        assert ema.model.weight.tolist() == pytest.approx([expected] * 3, rel=1e-6)


def test_ema_averages_running_statistics_and_copies_counters() -> None:
    """Batch norm's statistics belong to the averaged weights; its counter is a number of batches, not a mean."""
    module = model_with(0.0)
    ema = ExponentialAverage(module, decay=0.9)
    with torch.no_grad():
        module.running_mean.fill_(1.0)
        module.num_batches_tracked.fill_(7)
    ema.update()
    assert ema.model.running_mean.tolist() == pytest.approx([0.9] * 3)
    assert ema.model.num_batches_tracked.item() == 7


def test_without_decay_the_model_is_its_own_average() -> None:
    """ema_decay 0 costs no copy of the weights."""
    module = model_with(1.0)
    ema = ExponentialAverage(module, decay=0.0)
    ema.update()
    assert ema.model is module
    assert ema.state_dict()["model"] is None


def test_ema_never_touches_the_trained_model() -> None:
    module = model_with(1.0)
    ema = ExponentialAverage(module, decay=0.9)
    with torch.no_grad():
        module.weight.fill_(5.0)
    ema.update()
    assert module.weight.tolist() == [5.0] * 3
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_swa_is_the_equal_mean() -> None:
    """The mean of checkpoints 1, 2 and 6 is 3, buffers included; the counter is the last one's."""
    averaged = average_checkpoints(model_with(0.0), [model_with(value).state_dict() for value in (1.0, 2.0, 6.0)])
    for name, tensor in averaged.state_dict().items():
        assert tensor.float().mean().item() == pytest.approx(6.0 if name == "num_batches_tracked" else 3.0)


def test_swa_of_one_checkpoint_is_that_checkpoint() -> None:
    only = model_with(0.1).state_dict()
    averaged = average_checkpoints(model_with(0.0), [only])
    assert all(tensor.equal(only[name]) for name, tensor in averaged.state_dict().items())


def test_swa_refuses_a_checkpoint_of_another_model() -> None:
    """No `strict=False`: a missing weight is an error, and so is an empty list."""
    with pytest.raises(RuntimeError, match="running_mean"):
        average_checkpoints(model_with(0.0), [nn.LayerNorm(3).state_dict()])
    with pytest.raises(ValueError, match="no checkpoint"):
        average_checkpoints(model_with(0.0), [])
