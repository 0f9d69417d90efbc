"""FGM and PGD: where the second pass looks, which gradient is left, and that the weights come back untouched.

pytest tests/test_adversarial.py
"""

import numpy as np
import pytest
import torch
from torch import nn

from framefold.params.training import AdversarialParams
from framefold.training.adversarial import build_adversary

IDS, LABELS = torch.tensor([[1, 2], [3, 1]]), torch.tensor([0, 1])


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.word_embeddings, self.head = nn.Embedding(5, 3), nn.Linear(3, 2)

    def backward(self) -> None:
        logits = self.head(self.word_embeddings(IDS).mean(1))
        nn.functional.cross_entropy(logits, LABELS).backward()


def params(method: str, steps: int = 3) -> AdversarialParams:
    return AdversarialParams(method=method, epsilon=0.5, alpha=0.3, steps=steps)


def attack(model: Model, method: str, steps: int = 3) -> list[torch.Tensor]:
    """One clean and one adversarial pass; returns the embeddings that the adversarial passes saw."""
    seen = []

    def backward() -> None:
        seen.append(model.word_embeddings.weight.detach().clone())
        model.backward()

    adversary = build_adversary(model, params(method, steps))
    assert adversary is not None
    model.backward()
    adversary(backward)
    return seen


def test_no_attack_is_nothing() -> None:
    assert build_adversary(Model(), params("none")) is None
    assert build_adversary(Model(), None) is None


@pytest.mark.parametrize("method", ["fgm", "pgd"])
def test_weights_come_back_bit_for_bit(method: str) -> None:
    """After the attack the embeddings are the tensor they were: same memory, same bytes."""
    model = Model()
    weight = model.word_embeddings.weight
    before, memory = weight.detach().clone(), weight.data_ptr()
    seen = attack(model, method)
    assert all(not tensor.equal(before) for tensor in seen)
    assert weight.detach().equal(before)
    assert weight.data_ptr() == memory


@pytest.mark.parametrize("method", ["fgm", "pgd"])
def test_weights_come_back_when_a_pass_fails(method: str) -> None:
    """Out of memory in the second pass must not leave perturbed embeddings behind."""
    model = Model()
    before = model.word_embeddings.weight.detach().clone()
    adversary = build_adversary(model, params(method))
    assert adversary is not None
    model.backward()

    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        adversary(fail)
    assert model.word_embeddings.weight.detach().equal(before)


def test_fgm_goes_epsilon_along_the_gradient() -> None:
    """The perturbation is epsilon * g / |g|, with the norm over the whole matrix."""
    model = Model()
    model.backward()
    gradient = model.word_embeddings.weight.grad.clone()
    model.zero_grad()
    (seen,) = attack(model, "fgm")
    moved = seen - model.word_embeddings.weight.detach()
    torch.testing.assert_close(moved, 0.5 * gradient / gradient.norm())


@pytest.mark.parametrize("method", ["fgm", "pgd"])
def test_gradient_is_clean_plus_last_adversarial(method: str) -> None:
    """Gradients of PGD's points on the way do not count; every parameter gets both passes."""
    model = Model()
    seen = attack(model, method)
    left = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    expected = Model()
    expected.backward()
    with torch.no_grad():
        expected.word_embeddings.weight.copy_(seen[-1])
    expected.backward()
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(left[name], parameter.grad)


def test_pgd_stays_within_epsilon_and_raises_the_loss() -> None:
    """Three steps of 0.3 reach the ball of radius 0.5 and stop there; each point is worse than the one before."""
    model = Model()
    before = model.word_embeddings.weight.detach().clone()
    seen = attack(model, "pgd", steps=3)
    lengths = [(tensor - before).norm().item() for tensor in seen]
    assert lengths == pytest.approx([0.3, 0.5, 0.5], abs=1e-3)
    losses = [loss_at(model, point) for point in [before, *seen]]
    assert losses == sorted(losses)
    assert losses[0] < losses[1] < losses[2]


def loss_at(model: Model, point: torch.Tensor) -> float:
    embedded = nn.functional.embedding(IDS, point).mean(1)
    return nn.functional.cross_entropy(model.head(embedded), LABELS).item()


def test_zero_gradient_moves_nothing() -> None:
    """A batch whose text has no influence is no division by zero."""
    model = Model()
    before = model.word_embeddings.weight.detach().clone()
    model.word_embeddings.weight.grad = torch.zeros_like(before)
    seen = []
    adversary = build_adversary(model, params("fgm"))
    assert adversary is not None
    adversary(lambda: seen.append(model.word_embeddings.weight.detach().clone()))
    assert seen[0].equal(before)


def by_hand(embeddings: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
    """Gradients of the loss of `Model` with respect to embeddings, weight and bias, derived on paper."""
    mean = embeddings[IDS.numpy()].mean(axis=1)  # (2, 3)
    probs = np.exp(mean @ weight.T + bias)
    probs /= probs.sum(axis=1, keepdims=True)
    error = (probs - np.eye(2)[LABELS.numpy()]) / 2  # (2 samples, 2 classes)
    to_words = np.zeros_like(embeddings)
    for sample, words in enumerate(IDS.numpy()):
        for word in words:
            to_words[word] += error[sample] @ weight / 2
    return [to_words, error.T @ mean, error.sum(axis=0)]


def attacked_by_hand(values: list[np.ndarray], method: str, steps: int) -> list[np.ndarray]:
    """Clean gradients plus those at the attacked embeddings, epsilon 0.5, alpha 0.3."""
    embeddings, *head = values
    clean = by_hand(embeddings, *head)
    direction, moved = clean[0], np.zeros_like(embeddings)
    for _ in range(steps if method == "pgd" else 1):
        moved = moved + (0.3 if method == "pgd" else 0.5) * direction / np.linalg.norm(direction)
        moved = moved * min(1.0, 0.5 / np.linalg.norm(moved))
        last = by_hand(embeddings + moved, *head)
        direction = last[0]
    return [one + other for one, other in zip(clean, last, strict=True)]


@pytest.mark.parametrize(("method", "steps"), [("fgm", 1), ("pgd", 1), ("pgd", 2), ("pgd", 4)])
def test_an_attack_on_a_linear_model_is_what_paper_and_pencil_say(method: str, steps: int) -> None:
    """Gradients of all parameters in float64, against a derivation without autograd."""
    model = Model().double()
    values = [parameter.detach().numpy().copy() for parameter in model.parameters()]
    attack(model, method, steps)
    for parameter, expected in zip(model.parameters(), attacked_by_hand(values, method, steps), strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-9, atol=1e-12)
