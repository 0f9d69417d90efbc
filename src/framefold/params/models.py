"""`student`, `models.<arch>`: what a model reads and how large it is. `teacher` uses the same blocks."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from framefold.params.base import Group


class InputParams(Group):
    """Length budgets: tokens per text segment, and frames."""

    title: NonNegativeInt
    asr: NonNegativeInt
    ocr: NonNegativeInt
    max_frames: NonNegativeInt


class TextSizes(Group):
    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    intermediate: PositiveInt
    max_positions: PositiveInt
    dropout: float = Field(ge=0, lt=1)
    topics: bool  # word embeddings start from latent semantic analysis of the pool's text; false: at random


class TextModelParams(Group):
    """A BERT folder (config.json, weights) or sizes for one from scratch."""

    folder: str | None
    sha256: str | None  # of the weights file in `folder`; checked when given
    sizes: TextSizes | None

    @model_validator(mode="after")
    def one_source(self) -> "TextModelParams":
        if (self.folder is None) == (self.sizes is None):
            raise ValueError("give exactly one of folder and sizes")
        return self


class StudentParams(Group):
    key: ClassVar[str] = "student"
    encoder: str
    inputs: InputParams
    text: TextModelParams


class NextVladParams(Group):
    """Sizes of NeXtVLAD; read where `frames` is nextvlad."""

    clusters: PositiveInt
    groups: PositiveInt  # a divisor of expansion * hidden
    expansion: PositiveInt
    output: PositiveInt  # width of what it gives


class PoolingParams(Group):
    """How the states of a modality become one vector."""

    text: Literal["mean", "max", "attention"]
    frames: Literal["mean", "max", "attention", "nextvlad"]
    nextvlad: NextVladParams


class HeadParams(Group):
    """What every architecture puts on its states."""

    head_hidden: PositiveInt
    dropout: float = Field(ge=0, lt=1)
    dropout_samples: PositiveInt  # dropout masks of the head in training, whose logits are averaged
    pooling: PoolingParams


class SingleStreamParams(HeadParams):
    key: ClassVar[str] = "models.single_stream"


class DualStreamParams(HeadParams):
    key: ClassVar[str] = "models.dual_stream"
    layers: PositiveInt  # of cross-attention, frames as queries over text
    heads: PositiveInt
