"""Blocks shared by everything that trains: epochs, batch, learning rates, EMA, adversary."""

from typing import Literal

from pydantic import Field, PositiveInt

from framefold.params.base import Group


class LearningRates(Group):
    """Peak learning rates by the role of a parameter."""

    head: float = Field(gt=0)  # everything that starts from scratch: projections, fusion layers, heads
    text: float = Field(gt=0)  # the text encoder


class StepParams(Group):
    """How a training steps, however long it lasts."""

    batch_size: PositiveInt  # global: over all processes and accumulation steps
    weight_decay: float = Field(ge=0)
    warmup: float = Field(ge=0, lt=1)  # share of the training's samples; then cosine to zero
    max_grad_norm: float = Field(gt=0)
    ema_decay: float = Field(ge=0, lt=1)  # 0: no EMA


class OptimizationParams(StepParams):
    """What the training loop needs, whatever the roles of the parameters are."""

    epochs: PositiveInt


class BatchParams(StepParams):
    """Of videos, by length or by cost; learning rates by role."""

    # null: batches of batch_size samples. A number: batches of like cost, as many samples as keep samples x (longest
    # text + most frames), padding included, within it, and at most batch_size; a sample above it stands alone. The
    # learning rate follows the samples done, but in-batch negatives vary in number with the batch
    batch_tokens: PositiveInt | None
    lr: LearningRates


class TrainingParams(BatchParams, OptimizationParams):
    """All of one training."""


class AdversarialParams(Group):
    method: Literal["none", "fgm", "pgd"]
    epsilon: float = Field(gt=0)  # L2 radius of the perturbation of the word embeddings
    alpha: float = Field(gt=0)  # pgd: step
    steps: PositiveInt  # pgd: K
