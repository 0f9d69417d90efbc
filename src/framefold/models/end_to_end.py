"""A student with a vision tower of its own, which labels train along with the rest (`finetune.vision`)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from framefold.data.images import Preprocess
from framefold.errors import UserError
from framefold.models.recomputation import Layers
from framefold.models.registry import WEIGHTS, load_model
from framefold.models.vision import VisionEncoder, build_tower

CHUNK = 64  # frames encoded at a time: with `checkpointing` the backward pass holds the inner states of one chunk


class FromPixels(nn.Module):
    def __init__(self, encoder: VisionEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) -> (N, D); normalised here, so that only bytes are kept for a second computation."""
        features: Tensor = self.encoder(self.encoder.normalize(pixels))
        return features


class OwnTower(nn.Module):
    """Frames as pixels (B, F, S, S, 3) uint8 to features (B, F, D).

    Batch normalisation in it keeps the running statistics that the tower came with: those of a few videos' frames are
    worse, and so it differs neither between training and evaluation nor with the number of processes.
    """

    def __init__(self, encoder: VisionEncoder):
        super().__init__()
        self.chunks = Layers([FromPixels(encoder)])

    @property
    def encoder(self) -> VisionEncoder:
        encoder: VisionEncoder = self.chunks[0].encoder  # type: ignore[assignment]
        return encoder

    def train(self, mode: bool = True) -> "OwnTower":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        frames = pixels.flatten(0, 1)
        parts = [self.chunks.run(self.chunks[0], chunk) for chunk in frames.split(CHUNK) if len(chunk)]
        if not parts:
            return torch.zeros(*pixels.shape[:2], self.encoder.dim, device=pixels.device)
        return torch.cat(parts).unflatten(0, pixels.shape[:2])

    def to_json(self) -> dict[str, Any]:
        """What rebuilds it, without its weights."""
        return {"recipe": self.encoder.recipe, "preprocess": self.encoder.preprocess.to_json()}


def attach_tower(model: Any, encoder: VisionEncoder) -> None:
    """Give `model` a tower, whose frames are then pixels. UserError: its features have another size."""
    if encoder.dim != model.feature_dim:
        raise UserError(
            f"vision tower: gives {encoder.dim} dimensions, the student was pretrained on {model.feature_dim}"
        )
    model.frame_projection.tower = OwnTower(encoder)


def load_student(folder: Path | str, weights: str = WEIGHTS) -> Any:
    """`load_model` for students, with their towers where they have them: then open_clip or timm is imported."""
    return load_model(folder, weights, _attach_saved)


def _attach_saved(model: nn.Module, content: dict[str, Any]) -> None:
    if content["vision"] is not None:
        attach_tower(model, tower_from_json(content["vision"]))


def tower_from_json(content: dict[str, Any]) -> VisionEncoder:
    """The tower of `OwnTower.to_json` with weights that are still to be loaded; draws no random numbers."""
    with torch.random.fork_rng(devices=[]):
        tower, _ = build_tower(content["recipe"], None)
    return VisionEncoder(tower, content["recipe"], Preprocess.from_json(content["preprocess"])).eval()
