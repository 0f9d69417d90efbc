"""Heads on top of a backbone's states, and the pooling that feeds them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framefold.models.bert import BertConfig
from framefold.models.initialization import from_fan_in


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of states (B, T, H) where mask (B, T) is true, (B, H) float32; zeros for a row without any."""
    kept = states.float().masked_fill(~mask.unsqueeze(-1), 0.0)  # not a product: a padded state may hold anything
    return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def at_positions(states: Tensor, positions: Tensor) -> Tensor:
    """States (B, T, H) at positions (M,), flat int64 indices into B * T, as (M, H).

    They are made where the batch is made: to find them in a mask, the host would wait for the device.
    """
    return states.flatten(0, 1).index_select(0, positions)


class ClassificationHead(nn.Module):
    """Pooled states (B, P) to float32 logits (B, C).

    Multi-sample dropout (Inoue 2019): in training the mean of the logits under `dropout_samples` dropout masks.
    """

    def __init__(self, inputs: int, hidden: int, n_classes: int, dropout: float, dropout_samples: int):
        super().__init__()
        self.dense = nn.Linear(inputs, hidden)
        self.dropout, self.samples = nn.Dropout(dropout), dropout_samples
        self.out = nn.Linear(hidden, n_classes)
        self.apply(from_fan_in)

    def forward(self, pooled: Tensor) -> Tensor:
        if not self.training or self.samples == 1:
            return self._logits(pooled)
        return self._logits(pooled.expand(self.samples, -1, -1)).mean(0)

    def _logits(self, pooled: Tensor) -> Tensor:
        return self.out(self.dropout(F.gelu(self.dense(self.dropout(pooled))))).float()


class MlmTransform(nn.Module):
    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(hidden)))


class MlmHead(nn.Module):
    """Masked language model head, BERT's `cls.predictions`; its output layer is the word embedding matrix itself."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.transform = MlmTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(from_fan_in)

    def forward(self, text: Tensor, positions: Tensor, word_embeddings: nn.Embedding) -> Tensor:
        """Logits (M, V) at the masked positions of text (B, T, H) alone; for `positions` see `at_positions`."""
        return F.linear(self.transform(at_positions(text, positions)), word_embeddings.weight, self.bias)


class MfmHead(nn.Module):
    """Masked frame model head: predicts the features (M, D) of masked frames from their states."""

    def __init__(self, hidden: int, feature_dim: int):
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.out = nn.Linear(hidden, feature_dim)
        self.apply(from_fan_in)

    def forward(self, frames: Tensor, positions: Tensor) -> Tensor:
        """frames (B, F, H); for `positions` see `at_positions`."""
        return self.out(self.norm(F.gelu(self.dense(at_positions(frames, positions)))))


class ItmHead(nn.Module):
    """Do text and frames belong together? Pooled states (B, P) to one float32 logit each (B,)."""

    def __init__(self, inputs: int):
        super().__init__()
        self.out = nn.Linear(inputs, 1)
        self.apply(from_fan_in)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.out(pooled).squeeze(-1).float()


class LinearHead(nn.Module):
    """Pooled states (B, P) to float32 logits (B, C) by one layer."""

    def __init__(self, inputs: int, n_classes: int):
        super().__init__()
        self.out = nn.Linear(inputs, n_classes)
        self.apply(from_fan_in)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.out(pooled).float()


class ProjectionHead(nn.Module):
    """Pooled states (B, P) to unit vectors (B, E), float32, by one hidden layer (Khosla et al. 2020)."""

    def __init__(self, inputs: int, embed_dim: int):
        super().__init__()
        self.dense = nn.Linear(inputs, inputs)
        self.out = nn.Linear(inputs, embed_dim)
        self.apply(from_fan_in)

    def forward(self, pooled: Tensor) -> Tensor:
        return F.normalize(self.out(F.gelu(self.dense(pooled))).float(), dim=-1)


class ContrastHead(nn.Module):
    """Projects two modalities (B, A) and (B, D) to unit vectors (B, E) and learns the scale of their similarities."""

    def __init__(self, text_dim: int, frame_dim: int, embed_dim: int, temperature: float):
        super().__init__()
        self.text = nn.Linear(text_dim, embed_dim, bias=False)
        self.frames = nn.Linear(frame_dim, embed_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.apply(from_fan_in)  # as in CLIP

    def forward(self, text: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit text vectors (B, E), unit frame vectors (B, E), scale (): logits are scale * text @ frames.T."""
        scale = self.log_scale.exp()
        return F.normalize(self.text(text).float(), dim=-1), F.normalize(self.frames(frames).float(), dim=-1), scale
