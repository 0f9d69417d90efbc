"""`pretrain`: masked tokens and frames, matching, contrast and distillation on the unlabelled pool."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from framefold.params.base import Group
from framefold.params.training import TrainingParams

Weight = Field(ge=0)


class MaskingParams(Group):
    rate: float = Field(gt=0, lt=1)  # share of text tokens that are predicted
    max_ngram: PositiveInt  # spans of 1..n tokens, shorter ones likelier
    frame_rate: float = Field(ge=0, lt=1)  # share of frames that are masked


class ObjectiveWeights(Group):
    """0 turns an objective off."""

    mlm: float = Weight
    mfm: float = Weight
    itm: float = Weight
    itc: float = Weight
    distillation: float = Weight


class ContrastParams(Group):
    embed_dim: PositiveInt
    temperature: float = Field(gt=0)  # initial value; learned


class PretrainParams(TrainingParams):
    key: ClassVar[str] = "pretrain"
    per_fold: bool  # true: one pretraining per fold, on soft labels of the teacher that never saw it (strict, costly)
    masking: MaskingParams
    weights: dict[Literal["single_stream", "dual_stream"], ObjectiveWeights]
    contrast: ContrastParams
