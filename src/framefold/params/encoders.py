"""`encoders.<name>`: a vision encoder, its weights, its adaptation and how frames are fed to it."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from framefold.params.base import Group
from framefold.params.training import OptimizationParams


class NormalizationParams(Group):
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class AdaptParams(OptimizationParams):
    """Contrastive training on frame-title pairs of the unlabelled pool; the batch holds the negatives of its pairs."""

    epochs: NonNegativeInt  # 0, and timm towers: the tower as it came
    lr: float = Field(gt=0)  # of the vision tower
    text_lr: float = Field(gt=0)  # of the text side, which starts from scratch
    embed_dim: PositiveInt  # of a token, on the text side
    max_tokens: PositiveInt  # of the title
    min_crop: float = Field(gt=0, le=1)  # augmentation: least share of the frame's area in a random crop
    temperature: float = Field(gt=0)  # initial value; learned


class EncoderParams(Group):
    library: Literal["open_clip", "timm"]
    name: str | None  # model name in that library, e.g. ViT-B-16 or mobilenetv2_100; null with `config`
    config: dict[str, Any] | None  # open_clip: embed_dim, vision_cfg (and quick_gelu) in place of a name
    pretrained: str | None  # the library's pretrained tag (downloads)
    weights: str | None  # local weights file: state dict (.safetensors, .pt, .bin) or OpenAI's TorchScript archive
    sha256: str | None  # of the weights file; checked when given
    kwargs: dict[str, Any]  # timm: arguments of the constructor; open_clip: laid over the model's config
    normalization: NormalizationParams | None  # null: the encoder's own
    image_size: PositiveInt | None  # null: the encoder's own
    decoder: Literal["pillow", "torchvision"]  # of frames to encode: in workers at reduced scale, or on the device
    max_frames: PositiveInt  # at most this many, uniformly spaced, are encoded per video
    batch_size: PositiveInt  # frames per forward pass
    adapt: AdaptParams

    @model_validator(mode="after")
    def one_source(self) -> "EncoderParams":
        if (self.name is None) == (self.config is None):
            raise ValueError("give exactly one of name and config")
        if self.library == "timm" and self.config is not None:
            raise ValueError("a timm encoder is given by name; config is for open_clip")
        if self.pretrained and self.weights:
            raise ValueError("give at most one of pretrained and weights")
        if self.pretrained and self.name is None:
            raise ValueError("pretrained needs a name")
        return self
