"""`pretrain`: masked tokens and frames, matching, contrast and distillation on the unlabelled pool."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

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
    temperature: float = Field(gt=0)  # where itc starts to learn its own; fixed for mfm


class PretrainParams(TrainingParams):
    key: ClassVar[str] = "pretrain"
    epochs: NonNegativeInt  # 0: no pretraining, students start from scratch (or from their text model's own weights)
    # true: one pretraining per teacher, for the folds that it never saw (strict, teacher.n_folds times the cost)
    per_fold: bool
    held_out: PositiveInt  # videos of the pool that are kept aside to measure masked-token accuracy on
    masking: MaskingParams
    mismatched: float = Field(gt=0, le=1)  # share of a batch that is also shown with another video's frames (itm)
    weights: dict[Literal["single_stream", "dual_stream"], ObjectiveWeights]
    contrast: ContrastParams

    @model_validator(mode="after")
    def possible(self) -> "PretrainParams":
        for arch, weights in self.weights.items():
            if not any(weights.model_dump().values()):
                raise ValueError(f"weights.{arch}: at least one objective must be above 0")
        if "single_stream" in self.weights and self.weights["single_stream"].itc:
            raise ValueError("weights.single_stream.itc must be 0: its text and frames have no states of their own")
        return self
