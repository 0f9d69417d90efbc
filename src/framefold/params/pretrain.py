"""`pretrain`: masked tokens and frames, matching, contrast and distillation on the unlabelled pool."""

from typing import ClassVar, Literal, Self, get_args

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from framefold.params.base import Group
from framefold.params.labels import LabelParams
from framefold.params.training import BatchParams, TrainingParams

Arch = Literal["single_stream", "dual_stream"]
Weight = Field(ge=0)


class MaskingParams(Group):
    unit: Literal["token", "ngram", "word"]  # what is hidden as a whole; word: needs text.words
    rate: float = Field(gt=0, lt=1)  # share of text tokens that are predicted
    max_ngram: PositiveInt  # ngram: spans of 1..n tokens, shorter ones likelier
    frame_rate: float = Field(ge=0, lt=1)  # share of frames that are masked
    # share of the videos that are shown without any text, and without any frames (never both), anew in each epoch
    text_drop: float = Field(ge=0, le=1)
    frames_drop: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def never_both(self) -> "MaskingParams":
        if self.text_drop + self.frames_drop > 1:
            raise ValueError("text_drop and frames_drop add up to more than 1, but no video loses both")
        return self


class MismatchedParams(Group):
    """The texts that are also shown with another video's frames (itm)."""

    share: float = Field(gt=0, le=1)  # of a batch
    hard: float = Field(
        ge=0, le=1
    )  # share of them whose other video is drawn for the likeness of its frames; 0: of none
    temperature: float = Field(gt=0)  # of that likeness, a cosine of mean frames: lower takes more similar ones
    max_similarity: float = Field(gt=-1, le=1)  # above it another video is a near duplicate, not a mismatch


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
    queue: NonNegativeInt  # videos of earlier batches that are negatives as well, as the EMA saw them; 0: none
    soft_targets: float = Field(ge=0, le=1)  # alpha: share of the target that the EMA's similarities make up; 0: none
    alpha_start: float = Field(gt=0, le=1)  # share of alpha at the start of the training
    alpha_ramp: float = Field(ge=0, le=1)  # share of the training over which it rises to all of alpha

    @property
    def uses_momentum(self) -> bool:
        """Whether contrast asks the EMA, its momentum encoder."""
        return self.queue > 0 or self.soft_targets > 0


class PretrainParams(BatchParams):
    key: ClassVar[str] = "pretrain"
    epochs: dict[Arch, NonNegativeInt]  # 0: students start from scratch, or from their text model's own weights
    # true: one pretraining per teacher, for the folds that it never saw (strict, teacher.n_folds times the cost)
    per_fold: bool
    held_out: PositiveInt  # videos of the pool that are kept aside, to measure what was learned
    masking: MaskingParams
    mismatched: MismatchedParams
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
        if self.contrast.uses_momentum and self.ema_decay == 0:
            raise ValueError("contrast.queue and contrast.soft_targets need an ema_decay above 0: the EMA encodes them")
        return self
