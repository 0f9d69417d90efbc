"""`pretrain`: masked tokens and frames, matching, contrast and distillation on the unlabelled pool."""

from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from framefold.params.base import Group
from framefold.params.labels import LabelParams
from framefold.params.training import BatchParams, TrainingParams

Arch = Literal["single_stream", "dual_stream"]
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


class PretrainParams(BatchParams):
    key: ClassVar[str] = "pretrain"
    epochs: dict[Arch, NonNegativeInt]  # 0: students start from scratch, or from their text model's own weights
    # true: one pretraining per teacher, for the folds that it never saw (strict, teacher.n_folds times the cost)
    per_fold: bool
    held_out: PositiveInt  # videos of the pool that are kept aside to measure masked-token accuracy on
    masking: MaskingParams
    mismatched: float = Field(gt=0, le=1)  # share of a batch that is also shown with another video's frames (itm)
    weights: dict[Arch, ObjectiveWeights]
    contrast: ContrastParams
    labels: LabelParams  # of distillation; `balance` weighs them, since all videos serve the other objectives

    def only(self, arch: Arch) -> Self:
        """Without what concerns other architectures, so that nothing of theirs shows in a fingerprint."""
        return self.model_copy(update={"epochs": {arch: self.epochs[arch]}, "weights": {arch: self.weights[arch]}})

    def of(self, arch: Arch) -> TrainingParams:
        """What the training loop needs for one architecture."""
        return self.lasting(self.epochs[arch])

    def lasting(self, epochs: int) -> TrainingParams:
        own = self.model_dump(include=set(BatchParams.model_fields))
        return TrainingParams.model_validate(own | {"epochs": epochs})

    @model_validator(mode="after")
    def complete(self) -> "PretrainParams":
        for name, given in (("epochs", self.epochs), ("weights", self.weights)):
            for arch in get_args(Arch):
                if arch not in given:
                    raise ValueError(f"{name}.{arch} is missing")
        return self

    @model_validator(mode="after")
    def possible(self) -> "PretrainParams":
        for arch, weights in self.weights.items():
            if not any(weights.model_dump().values()):
                raise ValueError(f"weights.{arch}: at least one objective must be above 0")
        if "single_stream" in self.weights and self.weights["single_stream"].itc:
            raise ValueError("weights.single_stream.itc must be 0: its text and frames have no states of their own")
        return self
