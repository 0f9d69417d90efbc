"""Losses for long tails, consistency and contrast against independent computations.

pytest tests/test_class_losses.py
"""

import math

import numpy as np
import pytest
import torch

from framefold.objectives.classification import cross_entropy, focal_cross_entropy
from framefold.objectives.consistency import kl_to_teacher, symmetric_kl
from framefold.objectives.imbalance import effective_number_weights, log_priors, shown_sizes
from framefold.objectives.supervised_contrast import supervised_contrast

RNG = np.random.default_rng(0)
LOGITS, OTHERS = (RNG.normal(size=(7, 5)) * 2 for _ in range(2))
LABELS = RNG.integers(0, 5, 7)
SIZES = np.array([500.0, 80.0, 10.0, 1.0, 0.0])


def probs_of(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits)
    return exp / exp.sum(axis=1, keepdims=True)


def focal_by_loop(targets: np.ndarray, smoothing: float, gamma: float, weights: np.ndarray) -> float:
    """The definition, element by element; targets (7, 5)."""
    total = 0.0
    for probs, target in zip(probs_of(LOGITS), targets, strict=True):
        row = 0.0
        for prob, share in zip(probs, target, strict=True):
            row += ((1 - smoothing) * share + smoothing / 5) * (1 - prob) ** gamma * -math.log(prob)
        total += row * sum(share * weight for share, weight in zip(target, weights, strict=True))
    return total / len(targets)


@pytest.mark.parametrize(("smoothing", "gamma"), [(0.0, 2.0), (0.1, 2.0), (0.1, 0.5), (0.1, 0.0)])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_is_its_definition(smoothing: float, gamma: float, weighted: bool) -> None:
    weights = np.array([0.5, 1.0, 2.0, 4.0, 1.5])
    class_weights = torch.tensor(weights).float() if weighted else None
    found = focal_cross_entropy(torch.tensor(LOGITS), torch.tensor(LABELS), smoothing, gamma, class_weights)
    expected = focal_by_loop(np.eye(5)[LABELS], smoothing, gamma, weights if weighted else np.ones(5))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_focal_loss_without_gamma_is_cross_entropy() -> None:
    logits, labels = torch.tensor(LOGITS), torch.tensor(LABELS)
    found = focal_cross_entropy(logits, labels, 0.1, 0.0, None)
    assert float(found) == pytest.approx(float(cross_entropy(logits, labels, 0.1)), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.3, 1.0, 3.0])
def test_focal_gradient_is_finite_where_the_label_is_certain(gamma: float) -> None:
    """For gamma < 1 the slope of (1 - p)^gamma has no bound at p = 1."""
    logits = torch.tensor([[200.0, 0.0, 0.0], [-200.0, 0.0, 0.0]], requires_grad=True)
    focal_cross_entropy(logits, torch.tensor([0, 0]), 0.1, gamma, None).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("beta", [0.5, 0.99, 0.9999])
def test_class_weights_are_the_closed_form(beta: float) -> None:
    """(1 - beta) / (1 - beta^n), which is the inverse of the sum of the first n powers; mean 1 over the videos."""
    raw = np.array([1 / sum(beta**k for k in range(max(int(n), 1))) for n in SIZES])
    found = effective_number_weights(SIZES, beta)
    assert found / found[0] == pytest.approx(raw / raw[0], rel=1e-9)
    assert (found * SIZES).sum() / SIZES.sum() == pytest.approx(1.0)


def test_class_weights_between_none_and_inverse_frequency() -> None:
    near_none, near_inverse = effective_number_weights(SIZES[:4], 1e-9), effective_number_weights(SIZES[:4], 1 - 1e-9)
    assert near_none == pytest.approx(np.ones(4), rel=1e-6)
    assert near_inverse * SIZES[:4] == pytest.approx(np.full(4, SIZES[:4].sum() / 4), rel=1e-4)


def test_priors_are_shares_and_an_empty_class_counts_as_one_video() -> None:
    assert np.exp(log_priors(SIZES)) == pytest.approx(np.array([500, 80, 10, 1, 1]) / 591)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_sizes_are_as_oversampling_shows_them(power: float) -> None:
    labels = np.repeat([0, 1, 3], [90, 9, 1])
    found = shown_sizes(labels, 5, power)
    wanted = np.array([90 ** (1 - power), 9 ** (1 - power), 0, 1, 0])
    assert found == pytest.approx(100 * wanted / wanted.sum())


def optimum(labels: np.ndarray, inputs: np.ndarray, shift: torch.Tensor) -> np.ndarray:
    """(inputs, classes) logits, one row for each value of the input, that minimise the cross-entropy after `shift`."""
    logits = torch.zeros(inputs.max() + 1, len(shift), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits[torch.tensor(inputs)] + shift, torch.tensor(labels))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().numpy()


def test_logit_adjustment_leads_to_the_balanced_bayes_rule() -> None:
    """A toy with known p(x | y): after training with the priors on the logits their argmax is that of p(x | y); without
    them it is that of p(y | x), which prefers the frequent class."""
    likelihood = np.array([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]])  # (y, x)
    sizes = np.array([1000, 20, 100])
    counts = (likelihood * sizes[:, None]).round().astype(int)
    labels = np.repeat(np.arange(3), counts.sum(axis=1))
    inputs = np.concatenate([np.repeat(np.arange(3), row) for row in counts])
    shift = torch.tensor(log_priors(shown_sizes(labels, 3, 0.0)))
    balanced, plain = optimum(labels, inputs, shift), optimum(labels, inputs, torch.zeros(3))
    differences = balanced - balanced[:, :1]
    assert differences == pytest.approx((np.log(likelihood) - np.log(likelihood[:1])).T, abs=1e-3)
    assert balanced.argmax(axis=1).tolist() == likelihood.argmax(axis=0).tolist() == [0, 2, 1]
    assert plain.argmax(axis=1).tolist() == [0, 0, 0]


def test_symmetric_kl_is_the_mean_of_both_directions() -> None:
    p, q = probs_of(LOGITS), probs_of(OTHERS)
    expected = np.mean(
        [(a * np.log(a / b)).sum() / 2 + (b * np.log(b / a)).sum() / 2 for a, b in zip(p, q, strict=True)]
    )
    assert float(symmetric_kl(torch.tensor(LOGITS), torch.tensor(OTHERS))) == pytest.approx(expected, rel=1e-5)
    assert float(symmetric_kl(torch.tensor(LOGITS), torch.tensor(LOGITS))) == 0


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_to_the_teacher_and_who_learns(temperature: float) -> None:
    student, teacher = (torch.tensor(one, requires_grad=True) for one in (LOGITS, OTHERS))
    found = kl_to_teacher(student, teacher, temperature)
    p, q = probs_of(OTHERS / temperature), probs_of(LOGITS / temperature)
    assert found.item() == pytest.approx(temperature**2 * np.mean((p * np.log(p / q)).sum(axis=1)), rel=1e-5)
    found.backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.numpy() == pytest.approx(temperature * (q - p) / len(p), abs=1e-6)


def contrast_by_loop(vectors: np.ndarray, classes: list[int], valid: list[bool], temperature: float) -> float:
    """Khosla et al. 2020, equation 2, over anchors that have a positive."""
    rows, anchors = [i for i in range(len(vectors)) if valid[i]], []
    for i in rows:
        others = [a for a in rows if a != i]
        positives = [p for p in others if classes[p] == classes[i]]
        if positives:
            below = sum(math.exp(vectors[i] @ vectors[a] / temperature) for a in others)
            terms = [math.log(math.exp(vectors[i] @ vectors[p] / temperature) / below) for p in positives]
            anchors.append(-sum(terms) / len(positives))
    return sum(anchors) / max(len(anchors), 1)


VECTORS = RNG.normal(size=(9, 4))
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
CLASSES = [0, 1, 0, 2, 1, 0, 3, 1, 3]


@pytest.mark.parametrize("valid", [[True] * 9, [True, True, False, True, True, True, True, False, False]])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_supervised_contrast_is_a_double_loop(valid: list[bool], temperature: float) -> None:
    tensors = torch.tensor(VECTORS), torch.tensor(CLASSES), torch.tensor(valid)
    expected = contrast_by_loop(VECTORS, CLASSES, valid, temperature)
    assert float(supervised_contrast(*tensors, temperature)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_without_positives_teaches_nothing(rows: int) -> None:
    vectors = torch.tensor(VECTORS[:rows], requires_grad=True)
    loss = supervised_contrast(vectors, torch.arange(rows), torch.ones(rows, dtype=torch.bool), 0.1)
    loss.backward()
    assert loss.item() == 0
    assert vectors.grad is not None
    assert vectors.grad.abs().max() == 0


def test_rows_that_do_not_count_get_no_gradient() -> None:
    vectors = torch.tensor(VECTORS, requires_grad=True)
    valid = torch.arange(9) < 6
    supervised_contrast(vectors, torch.tensor(CLASSES), valid, 0.1).backward()
    assert vectors.grad is not None
    assert vectors.grad[6:].abs().max() == 0
    assert (vectors.grad[[0, 1, 2, 4, 5]].abs().max(dim=1).values > 0).all()
