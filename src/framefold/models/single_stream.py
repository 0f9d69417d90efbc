"""single_stream: text tokens and frames as one sequence through one text encoder.

Frame features are projected and go through the text model's own embeddings as tokens of type 1 with positions of
their own, so that a pretrained text encoder mixes both modalities in every layer (VisualBERT, Li et al. 2019; the
single-stream models of the WeChat Big Data Challenge 2022).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from framefold.models.backbone import FRAME_TYPE, Batch, Encoded, FrameProjection, check_token_types, role_of
from framefold.models.bert import BertEncoder
from framefold.models.heads import ClassificationHead
from framefold.models.pooling import frame_pooling, text_pooling
from framefold.params.models import SingleStreamParams


class SingleStream(nn.Module):
    Params: ClassVar = SingleStreamParams

    def __init__(self, text: BertEncoder, params: SingleStreamParams, feature_dim: int, n_classes: int):
        super().__init__()
        check_token_types(text, "single_stream")
        self.params, self.feature_dim, self.n_classes = params, feature_dim, n_classes
        self.hidden_size = text.config.hidden_size
        self.text = text
        self.frame_projection = FrameProjection(feature_dim, self.hidden_size)
        self.text_pooling = text_pooling(params.pooling, self.hidden_size)
        self.frame_pooling = frame_pooling(params.pooling, self.hidden_size)
        self.pooled_size = self.text_pooling.size + self.frame_pooling.size
        self.head = ClassificationHead(
            self.pooled_size, params.head_hidden, n_classes, params.dropout, params.dropout_samples
        )

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.text.embeddings.word_embeddings

    def role_of(self, name: str) -> str:
        """Learning-rate role of the parameter `name`."""
        return role_of(name)

    def encode(
        self,
        batch: Batch,
        input_ids: Tensor | None = None,
        frames: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Encoded:
        """States of a batch; ids (B, T), frames (B, F, D) and their mask may be replaced (masked or mismatched)."""
        input_ids = batch["input_ids"] if input_ids is None else input_ids
        frames = batch["frames"] if frames is None else frames
        places = batch.get("real_inputs") if frame_mask is None else None  # they belong to the batch's own mask
        frame_mask = batch["frame_mask"] if frame_mask is None else frame_mask
        text_mask, length = batch["text_mask"], input_ids.shape[1]
        embedded = [self.text.embed(input_ids), self.embed_frames(frames, frame_mask)]
        mask = torch.cat([text_mask, frame_mask], dim=1)  # (B, T + F)
        hidden = self.text.encode(torch.cat(embedded, dim=1), mask, places)  # (B, T + F, H)
        text, frames = hidden[:, :length], hidden[:, length:]
        pooled = torch.cat([self.text_pooling(text, text_mask), self.frame_pooling(frames, frame_mask)], dim=-1)
        return Encoded(text, text_mask, frames, frame_mask, pooled)

    def embed_frames(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Features (B, F, D) as input states (B, F, H)."""
        return self.text.embed(inputs_embeds=self.frame_projection(frames, frame_mask), token_type_ids=FRAME_TYPE)

    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C), float32."""
        return self.head(self.encode(batch).pooled)
