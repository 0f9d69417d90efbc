"""Temperature scaling of the teachers. Run: .venv/bin/python -m pytest tests/test_calibration.py"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from framefold.evaluation.calibration import (
    calibration,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
)
from framefold.inference.committee import OutOfFold


def drawn(scale: float, members: int = 1, seed: int = 0) -> OutOfFold:
    """Labels drawn from softmax(z), logits scale * z: the right temperature of one member is about `scale`."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (4000, 6))
    probs = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    truth = (probs.cumsum(1) < rng.random((4000, 1))).sum(1).clip(max=5)
    each = [scale * z + (rng.normal(0, 0.5, z.shape) if members > 1 else 0) for _ in range(members)]
    return OutOfFold(truth, np.stack(each).astype(np.float32))


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_the_temperature_is_that_of_torch_lbfgs(scale):
    known = drawn(scale)
    logits, truth = torch.from_numpy(known.logits[0]).double(), torch.from_numpy(known.truth)
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), truth)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = fit_temperature(known.probs, known.truth)
    assert found == pytest.approx(log_temperature.exp().item(), rel=1e-4)
    assert found == pytest.approx(scale, rel=0.1)


def test_of_several_models_the_mean_of_their_probabilities_is_fitted():
    known = drawn(0.5, members=3)
    found = fit_temperature(known.probs, known.truth)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 2000))
    best = min(grid, key=lambda t: negative_log_likelihood(known.probs(t), known.truth))
    assert found == pytest.approx(best, rel=5e-3)


def test_scaling_mends_underconfident_teachers():
    known = drawn(0.4)
    before = calibration(known.probs(1.0), known.truth)
    after = calibration(known.probs(fit_temperature(known.probs, known.truth)), known.truth)
    assert after["nll"] < before["nll"] - 0.1
    assert after["ece"] < 0.03 < 0.2 < before["ece"]


def test_nll_and_ece_are_those_computed_by_hand():
    known = drawn(1.7)
    probs = known.probs(1.0)
    rows = list(zip(probs, known.truth, strict=True))
    assert negative_log_likelihood(probs, known.truth) == pytest.approx(-np.mean([np.log(p[t]) for p, t in rows]))
    gap = 0.0
    for low in range(15):
        inside = [(p.max(), p.argmax() == t) for p, t in rows if low <= 15 * p.max() < low + 1]
        if inside:
            gap += len(inside) * abs(np.mean([sure for sure, _ in inside]) - np.mean([hit for _, hit in inside]))
    assert expected_calibration_error(probs, known.truth) == pytest.approx(gap / len(rows))
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0  # certain and right, in the last bin
