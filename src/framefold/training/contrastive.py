"""Adapting a vision tower to the pool: contrast of frames and titles, as in CLIP (Radford et al. 2021).

The title's side is a mean of token vectors and a small MLP, thrown away afterwards. The vectors start from latent
semantic analysis of the pool's own text (Deerwester et al. 1990): with topics known from the first step a few thousand
titles teach a tower; with random vectors they are learned by heart.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framefold.data.batches import Batch
from framefold.models.vision import VisionEncoder
from framefold.objectives.itc import info_nce, retrieval_accuracy
from framefold.training.sharing import Share


class TitleEncoder(nn.Module):
    """Token ids (B, T), mask (B, T) -> (B, D), whatever the order of the tokens. token_vectors (V, E)."""

    def __init__(self, token_vectors: npt.NDArray[np.float32], dim: int):
        super().__init__()
        embed_dim = token_vectors.shape[1]
        self.embedding = nn.Embedding.from_pretrained(torch.from_numpy(token_vectors), freeze=True)
        self.norm = nn.LayerNorm(embed_dim)
        self.project = nn.Sequential(nn.Linear(embed_dim, 2 * embed_dim), nn.GELU(), nn.Linear(2 * embed_dim, dim))

    def forward(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        summed = (self.embedding(input_ids) * mask.unsqueeze(-1)).sum(1)  # (B, E); norm makes a mean of it
        projected: Tensor = self.project(self.norm(summed))
        return projected


class ContrastiveModel(nn.Module):
    """A vision encoder, a title encoder that ends in the same space, and the inverse temperature, learned as a log."""

    def __init__(self, encoder: VisionEncoder, token_vectors: npt.NDArray[np.float32], temperature: float):
        super().__init__()
        self.encoder = encoder
        self.titles = TitleEncoder(token_vectors, encoder.dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit vectors (B, D) of frames and titles, float32."""
        images = self.encoder(self.encoder.normalize(batch["pixels"]))
        titles = self.titles(batch["input_ids"], batch["text_mask"])
        return F.normalize(images.float(), dim=-1), F.normalize(titles.float(), dim=-1)


class ContrastiveTask:
    """Symmetric InfoNCE over the global batch: titles of all processes are negatives."""

    whole_batch = True

    def __init__(self, model: ContrastiveModel):
        self.model: nn.Module = model
        self.log_scale = model.log_scale

    def loss(self, batch: Batch, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        images, titles = (share.gather(rows) for rows in self.model(batch))
        valid = share.gather_mask(batch["has_frame"])
        loss = info_nce(images, titles, valid, self.log_scale.exp())
        return loss, {
            "retrieval_accuracy": retrieval_accuracy(images, titles, valid),
            "scale": self.log_scale.detach().exp(),
        }

    def role_of(self, name: str) -> str:
        return "vision" if name.startswith("encoder.") else "text"
