"""dual_stream: text through the text encoder; frames then ask it questions in cross-attention layers.

Each fusion layer lets the frames look at each other (self-attention), at the text (cross-attention) and at themselves
(feed-forward), like a transformer decoder without a causal mask (ALBEF's and LXMERT's cross-modal layers). They start
from scratch, so they are pre-norm, which trains without a long warm-up. A learned query stands before the frames: a
video without frames still reads its text through it.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.models.attention import attend
from framefold.models.backbone import FRAME_TYPE, Batch, Encoded, FrameProjection, check_token_types, role_of
from framefold.models.bert import BertEncoder, initializer_std
from framefold.models.heads import ClassificationHead, masked_mean
from framefold.models.initialization import from_fan_in
from framefold.models.pooling import frame_pooling, text_pooling
from framefold.models.recomputation import Layers
from framefold.params.models import DualStreamParams


class Attention(nn.Module):
    """Multi-head attention of hidden (B, Q, H) over source (B, K, H) where source_mask (B, K) is true."""

    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, hidden: Tensor, source: Tensor, source_mask: Tensor) -> Tensor:
        query, key, value = (
            states.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, length, H / heads)
            for states in (self.query(hidden), *self.key_value(source).chunk(2, dim=-1))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = attend(query, key, value, source_mask[:, None, None, :], dropout)
        return self.out(mixed.transpose(1, 2).flatten(2))


class FusionLayer(nn.Module):
    def __init__(self, hidden: int, heads: int, dropout: float):
        super().__init__()
        self.self_norm, self.cross_norm, self.feed_norm = (nn.LayerNorm(hidden) for _ in range(3))
        self.self_attention = Attention(hidden, heads, dropout)
        self.cross_attention = Attention(hidden, heads, dropout)
        self.feed_forward = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor, frame_mask: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        normed = self.self_norm(frames)
        frames = frames + self.dropout(self.self_attention(normed, normed, frame_mask))
        frames = frames + self.dropout(self.cross_attention(self.cross_norm(frames), text, text_mask))
        return frames + self.dropout(self.feed_forward(self.feed_norm(frames)))


class DualStream(nn.Module):
    Params: ClassVar = DualStreamParams

    def __init__(self, text: BertEncoder, params: DualStreamParams, feature_dim: int, n_classes: int):
        super().__init__()
        check_token_types(text, "dual_stream")
        if text.config.hidden_size % params.heads:
            raise UserError(
                f"models.dual_stream.heads: {params.heads} do not divide {text.config.hidden_size} hidden units"
            )
        self.params, self.feature_dim, self.n_classes = params, feature_dim, n_classes
        self.hidden_size = hidden = text.config.hidden_size
        self.frame_projection = FrameProjection(feature_dim, hidden)
        self.query = nn.Parameter(torch.empty(hidden))
        self.fusion = Layers(FusionLayer(hidden, params.heads, params.dropout) for _ in range(params.layers))
        self.fused_norm = nn.LayerNorm(hidden)
        self.apply(from_fan_in)
        nn.init.normal_(self.query, std=initializer_std(hidden))
        self.text = text
        self.text_pooling = text_pooling(params.pooling, hidden)
        self.frame_pooling = frame_pooling(params.pooling, hidden)
        self.pooled_size = self.text_pooling.size + self.frame_pooling.size + hidden
        self.head = ClassificationHead(
            self.pooled_size, params.head_hidden, n_classes, params.dropout, params.dropout_samples
        )

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.text.embeddings.word_embeddings

    def role_of(self, name: str) -> str:
        """Learning-rate role of the parameter `name`."""
        return role_of(name)

    def encode_text(self, batch: Batch, input_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Text states (B, T, H) and mask (B, T), before any fusion."""
        input_ids = batch["input_ids"] if input_ids is None else input_ids
        text_mask = batch["text_mask"]
        return self.text(input_ids, attention_mask=text_mask, places=batch.get("real_text")), text_mask

    def encode_frames(
        self, batch: Batch, frames: Tensor | None = None, frame_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frame states (B, 1 + F, H) and mask (B, 1 + F), before any fusion; the first is the learned query."""
        frames = batch["frames"] if frames is None else frames
        frame_mask = batch["frame_mask"] if frame_mask is None else frame_mask
        projected = self.frame_projection(frames, frame_mask)
        query = self.query.to(projected.dtype).expand(len(frames), 1, -1)
        states = self.text.embed(inputs_embeds=torch.cat([query, projected], dim=1), token_type_ids=FRAME_TYPE)
        return states, F.pad(frame_mask, (1, 0), value=True)

    def fuse(self, text: Tensor, text_mask: Tensor, frames: Tensor, frame_mask: Tensor) -> Encoded:
        """Fuse states of `encode_text` with those of `encode_frames`, of the same videos or of mismatched ones."""
        for layer in self.fusion:
            frames = self.fusion.run(layer, frames, frame_mask, text, text_mask)
        frames = self.fused_norm(frames)
        query, frames, frame_mask = frames[:, 0], frames[:, 1:], frame_mask[:, 1:]
        # the query apart: in the frames' mean it would weigh as much as the only frame of a video
        pooled = [self.text_pooling(text, text_mask), self.frame_pooling(frames, frame_mask), query.float()]
        return Encoded(text, text_mask, frames, frame_mask, torch.cat(pooled, dim=-1))

    def unimodal(self, text: Tensor, text_mask: Tensor, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """One vector (B, H) per modality before fusion, for contrast; a video without frames gets zeros."""
        return masked_mean(text, text_mask), masked_mean(frames[:, 1:], frame_mask[:, 1:])

    def encode(
        self,
        batch: Batch,
        input_ids: Tensor | None = None,
        frames: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Encoded:
        """States of a batch; ids (B, T), frames (B, F, D) and their mask may be replaced (masked or mismatched)."""
        return self.fuse(*self.encode_text(batch, input_ids), *self.encode_frames(batch, frames, frame_mask))

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32."""
        return self.head(self.encode(batch).pooled)
