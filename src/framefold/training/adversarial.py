"""Adversarial training on the word embeddings: FGM (Miyato et al. 2017) and PGD (Madry et al. 2018).

Both run after the clean backward pass and leave the clean gradient plus the gradient at the perturbed embeddings, as
in the winning solutions of the WeChat Big Data Challenge. The perturbed weight is a tensor of its own that stands in
for a while, so that the original comes back untouched, bit for bit, also when a pass fails.
"""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from framefold.params.training import AdversarialParams

Backward = Callable[[], object]  # forward and backward over the whole batch; adds to the parameters' gradients


class Adversary(Protocol):
    def __call__(self, backward: Backward) -> None:
        """Call when the gradients of the clean batch are in place; adds those of the perturbed batch."""
        ...


def build_adversary(model: nn.Module, params: AdversarialParams | None) -> Adversary | None:
    """The attack on `model.word_embeddings` that params ask for; None for no attack."""
    if params is None or params.method == "none":
        return None
    weight = cast(nn.Parameter, cast(nn.Embedding, model.word_embeddings).weight)
    if params.method == "fgm":
        return Fgm(weight, params.epsilon)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Pgd(weight, trained, params.epsilon, params.alpha, params.steps)


class Fgm:
    """One step of length `epsilon` along the gradient of the embeddings `weight` (V, H)."""

    def __init__(self, weight: nn.Parameter, epsilon: float):
        self.weight, self.epsilon = weight, epsilon
        self.perturbed = torch.empty_like(weight.data)  # kept: allocating it anew costs more than filling it

    def __call__(self, backward: Backward) -> None:
        if self.weight.grad is None:
            return
        original, gradient = self.weight.data, self.weight.grad
        torch.addcmul(original, gradient, scale_to(gradient, self.epsilon), out=self.perturbed)
        try:
            self.weight.data = self.perturbed
            backward()
        finally:
            self.weight.data = original


class Pgd:
    """`steps` steps of length `alpha`, each along the gradient at the last point, kept within `epsilon` of `weight`.

    The gradients of the points on the way are thrown away; that of the last point is added to the clean one.
    """

    def __init__(self, weight: nn.Parameter, trained: list[nn.Parameter], epsilon: float, alpha: float, steps: int):
        self.weight, self.trained = weight, trained
        self.epsilon, self.alpha, self.steps = epsilon, alpha, steps
        self.moved, self.perturbed = torch.zeros_like(weight.data), torch.empty_like(weight.data)

    def __call__(self, backward: Backward) -> None:
        if self.weight.grad is None:
            return
        original, clean = self.weight.data, [parameter.grad for parameter in self.trained]
        self.moved.zero_()
        try:
            for step in range(1, self.steps + 1):
                self._move(original)
                self._set_gradients(clean if step == self.steps else [None] * len(clean))
                backward()
        finally:
            self.weight.data = original

    def _move(self, original: Tensor) -> None:
        gradient = cast(Tensor, self.weight.grad)
        self.moved.addcmul_(gradient, scale_to(gradient, self.alpha))
        self.moved.mul_(self.epsilon / self.moved.norm().clamp_min(self.epsilon))  # back onto the ball
        self.weight.data = torch.add(original, self.moved, out=self.perturbed)

    def _set_gradients(self, gradients: list[Tensor | None]) -> None:
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            parameter.grad = gradient


def scale_to(gradient: Tensor, length: float) -> Tensor:
    """What to multiply `gradient` by for an L2 norm of `length` over the whole matrix; a zero gradient stays zero."""
    return length / gradient.norm().clamp_min(1e-12)
