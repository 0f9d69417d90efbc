"""Blocks shared by all that learn from labels: students in finetuning, teachers (`teacher.training`)."""

from pydantic import Field, PositiveInt, model_validator

from framefold.params.base import Group
from framefold.params.models import HeadParams, TextModelParams
from framefold.params.training import AdversarialParams, TrainingParams

Weight = Field(ge=0)  # 0: off


class LossParams(Group):
    """How the cross-entropy with the labels treats easy samples and rare classes."""

    focal_gamma: float = Weight
    class_balance: float = Field(ge=0, lt=1)  # beta of the effective number of samples; near 1: inverse frequency
    logit_adjustment: float = Weight  # tau: log priors of the classes are added to the logits, in training alone


class SelfDistillationParams(Group):
    """Towards the predictions of the EMA weights."""

    weight: float = Weight
    temperature: float = Field(gt=0)


class SupervisedContrastParams(Group):
    """Videos of one class attract each other, all others of the batch repel."""

    weight: float = Weight
    temperature: float = Field(gt=0)
    embed_dim: PositiveInt


class SupervisedParams(TrainingParams):
    label_smoothing: float = Field(ge=0, lt=1)
    adversarial: AdversarialParams
    loss: LossParams
    level1: float = Weight  # of a head that predicts level-1 groups, thrown away afterwards
    r_drop: float = Weight
    self_distillation: SelfDistillationParams
    contrast: SupervisedContrastParams
    oversampling: float = Field(ge=0, le=1)  # a class of n videos comes ~ n^(1 - power) times in an epoch
    layer_decay: float = Field(gt=0, le=1)  # of lr.text, which is the last layer's, by layer downwards

    @model_validator(mode="after")
    def has_average(self) -> "SupervisedParams":
        if self.self_distillation.weight and not self.ema_decay:
            raise ValueError("self_distillation learns from the EMA: set ema_decay above 0, or its weight to 0")
        return self

    def peak_rates(self) -> dict[str, float]:
        """Peak learning rates by the roles of the parameters."""
        return self.lr.model_dump()


def dropout_problem(
    name: str, training: SupervisedParams, model: str, head: HeadParams, text: TextModelParams
) -> str | None:
    """Why a method that compares or averages dropout masks would do nothing, at a multiple of the cost; `name` and
    `model` are the keys of the training and of the head. What a BERT folder says of dropout is not known here."""
    if head.dropout_samples > 1 and not head.dropout:
        return f"{model}.dropout_samples is {head.dropout_samples}, but {model}.dropout is 0; raise it or set them to 1"
    if training.r_drop and not head.dropout and text.sizes is not None and not text.sizes.dropout:
        return f"{name}.r_drop compares two passes, but {model} has no dropout; set {model}.dropout, or r_drop to 0"
    return None
