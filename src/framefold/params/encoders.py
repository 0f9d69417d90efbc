"""`encoders.<name>`: a vision encoder, its weights, its adaptation and how frames are fed to it."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from framefold.params.base import Group


class NormalizationParams(Group):
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class AdaptParams(Group):
    """Contrastive training on frame-title pairs of the unlabelled pool; 0 epochs: the tower as it came."""

    epochs: NonNegativeInt
    batch_size: PositiveInt  # contrastive batch: every other title in it is a negative
    lr: float = Field(gt=0)  # of the vision tower
    text_lr: float = Field(gt=0)  # of the text side, which starts from scratch
    weight_decay: float = Field(ge=0)
    warmup: float = Field(ge=0, lt=1)
    embed_dim: PositiveInt
    max_tokens: PositiveInt  # of the title


class EncoderParams(Group):
    library: Literal["open_clip", "timm"]
    name: str | None  # model name in that library, e.g. ViT-B-16 or mobilenetv2_100; null with `config`
    config: dict[str, Any] | None  # open_clip: a model config in place of a name
    pretrained: str | None  # open_clip's pretrained tag (downloads)
    weights: str | None  # local weights file: state dict (.safetensors, .pt, .bin) or TorchScript archive
    sha256: str | None  # of the weights file; checked when given
    kwargs: dict[str, Any]  # overrides of the model's constructor
    normalization: NormalizationParams | None  # null: the encoder's own
    image_size: PositiveInt | None  # null: the encoder's own
    max_frames: PositiveInt  # at most this many, uniformly spaced, are encoded per video
    batch_size: PositiveInt  # frames per forward pass
    adapt: AdaptParams

    @model_validator(mode="after")
    def one_source(self) -> "EncoderParams":
        if (self.name is None) == (self.config is None):
            raise ValueError("give exactly one of name and config")
        if self.pretrained and self.weights:
            raise ValueError("give at most one of pretrained and weights")
        return self
