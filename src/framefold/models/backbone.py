"""What every architecture shares: its batch, its states, its place for the text model and for frame features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from framefold.errors import UserError
from framefold.models.bert import BertEncoder
from framefold.models.initialization import from_fan_in

Batch = Mapping[str, Tensor]
FRAME_TYPE = 1  # token type of frames; text is 0


@dataclass(frozen=True)
class Encoded:
    """States of one batch. `pooled` is what the classification head reads, (B, model.pooled_size)."""

    text: Tensor  # (B, T, H)
    text_mask: Tensor  # (B, T) bool
    frames: Tensor  # (B, F, H)
    frame_mask: Tensor  # (B, F) bool
    pooled: Tensor  # (B, P)


class FrameProjection(nn.Module):
    """Frame features (B, F, D) to the text model's width (B, F, H), whatever the encoder's scale.

    Features are standardised per frame. A frame of zeros (masked) stays zero, so the bias stands for "masked". With a
    `tower` (models/end_to_end.py) frames are pixels (B, F, S, S, 3), of which it makes the features.
    """

    tower: nn.Module | None

    def __init__(self, feature_dim: int, hidden: int):
        super().__init__()
        self.tower = None
        self.norm = nn.LayerNorm(feature_dim, elementwise_affine=False)
        self.dense = nn.Linear(feature_dim, hidden)
        self.apply(from_fan_in)

    def forward(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        if self.tower is not None:
            frames = self.tower(frames)
        return self.dense(self.norm(frames.masked_fill(~frame_mask.unsqueeze(-1), 0.0)))  # padding may hold anything


def role_of(name: str) -> Literal["text", "vision", "head"]:
    """Learning-rate role of the parameter `name` of an architecture."""
    if name.startswith("frame_projection.tower."):
        return "vision"
    return "text" if name.startswith("text.") else "head"


def check_token_types(text: BertEncoder, where: str) -> None:
    if text.config.type_vocab_size <= FRAME_TYPE:
        raise UserError(
            f"{where}: the text model has one token type, frames need a second; use another BERT checkpoint"
        )
