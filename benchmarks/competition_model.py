"""The reference model of benchmarks/training.py: pretraining as solutions of the competition wrote it, on BertModel.

Plain PyTorch around transformers' BertModel, sharing no code with framefold. It computes the objectives of
`PretrainingModel` with the same weights (tests/test_benchmarks.py loads ours into it and compares every loss), and does
it as the baseline of the WeChat Big Data Challenge 2022 and its solutions did: every input at full length, word logits
and frame similarities at every position, those that do not count left out afterwards.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

IGNORED = -100  # label of a token that is not predicted
FAR = -1e8  # similarity to what is no frame

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """Of the reference. The text model's fields are those of `TextSizes`; `fusion_heads` is dual_stream's."""

    vocabulary: int
    layers: int
    hidden: int
    heads: int
    intermediate: int
    positions: int
    dropout: float
    feature_dim: int
    classes: int
    head_hidden: int
    model_dropout: float
    fusion_layers: int
    fusion_heads: int
    contrast_dim: int
    temperature: float


def text_model(sizes: Sizes) -> Any:
    """With PyTorch's fused attention, the library's default: faster here than the plain one of 2022."""
    config = BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.intermediate,
        max_position_embeddings=sizes.positions,
        hidden_dropout_prob=sizes.dropout,
        attention_probs_dropout_prob=sizes.dropout,
    )
    return BertModel(config, add_pooling_layer=False)


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """(B, T, H), (B, T) -> (B, H)"""
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(1) / weights.sum(1)


class FrameProjection(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.norm = nn.LayerNorm(sizes.feature_dim, elementwise_affine=False)
        self.dense = nn.Linear(sizes.feature_dim, sizes.hidden)

    def forward(self, frames: Tensor) -> Tensor:
        return self.dense(self.norm(frames))


class Classifier(nn.Module):
    def __init__(self, inputs: int, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(inputs, sizes.head_hidden)
        self.out = nn.Linear(sizes.head_hidden, sizes.classes)
        self.dropout = nn.Dropout(sizes.model_dropout)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.out(self.dropout(F.gelu(self.dense(self.dropout(pooled)))))


class SingleStream(nn.Module):
    """Text and frames as one sequence through BERT."""

    pooled = 2  # times the hidden size

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.text = text_model(sizes)
        self.frame_projection = FrameProjection(sizes)
        self.head = Classifier(self.pooled * sizes.hidden, sizes)

    def forward(self, ids: Tensor, mask: Tensor, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Text states (B, T, H), frame states (B, F, H), pooled (B, 2 H)."""
        words = self.text.get_input_embeddings()(ids)
        types = torch.cat([torch.zeros_like(mask), torch.ones_like(frame_mask)], dim=1).long()
        positions = torch.cat([torch.arange(mask.shape[1]), torch.arange(frame_mask.shape[1])]).unsqueeze(0)
        hidden = self.text(
            inputs_embeds=torch.cat([words, self.frame_projection(frames)], dim=1),
            attention_mask=torch.cat([mask, frame_mask], dim=1),
            token_type_ids=types,
            position_ids=positions,
        ).last_hidden_state
        text, video = hidden[:, : mask.shape[1]], hidden[:, mask.shape[1] :]
        return text, video, torch.cat([mean(text, mask), mean(video, frame_mask)], dim=-1)


class Attention(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.heads = sizes.fusion_heads
        self.query, self.key, self.value, self.out = (nn.Linear(sizes.hidden, sizes.hidden) for _ in range(4))
        self.dropout = nn.Dropout(sizes.model_dropout)

    def forward(self, states: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part.view(len(part), part.shape[1], self.heads, -1).transpose(1, 2)
            for part in (self.query(states), self.key(source), self.value(source))
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        scores = scores + (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        mixed = self.dropout(scores.softmax(dim=-1)).to(value.dtype) @ value
        return self.out(mixed.transpose(1, 2).reshape(states.shape))


class FusionLayer(nn.Module):
    """Frames look at each other, then at the text."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        hidden = sizes.hidden
        self.self_norm, self.cross_norm, self.feed_norm = (nn.LayerNorm(hidden) for _ in range(3))
        self.self_attention, self.cross_attention = Attention(sizes), Attention(sizes)
        self.feed_forward = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
        self.dropout = nn.Dropout(sizes.model_dropout)

    def forward(self, frames: Tensor, frame_mask: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        normed = self.self_norm(frames)
        frames = frames + self.dropout(self.self_attention(normed, normed, frame_mask))
        frames = frames + self.dropout(self.cross_attention(self.cross_norm(frames), text, mask))
        return frames + self.dropout(self.feed_forward(self.feed_norm(frames)))


class DualStream(nn.Module):
    """Text through BERT; frames ask it questions in cross-attention layers."""

    pooled = 3

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.text = text_model(sizes)
        self.frame_projection = FrameProjection(sizes)
        self.query = nn.Parameter(torch.randn(sizes.hidden) * 0.02)
        self.fusion = nn.ModuleList(FusionLayer(sizes) for _ in range(sizes.fusion_layers))
        self.fused_norm = nn.LayerNorm(sizes.hidden)
        self.head = Classifier(self.pooled * sizes.hidden, sizes)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.text(input_ids=ids, attention_mask=mask).last_hidden_state

    def encode_frames(self, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, 1 + F, H) and mask (B, 1 + F): the learned query stands first."""
        projected = self.frame_projection(frames)
        query = self.query.to(projected.dtype).expand(len(frames), 1, -1)
        mask = torch.cat([torch.ones_like(frame_mask[:, :1]), frame_mask], dim=1)
        states = torch.cat([query, projected], dim=1)
        return self.text.embeddings(inputs_embeds=states, token_type_ids=torch.ones_like(mask).long()), mask

    def fuse(self, text: Tensor, mask: Tensor, video: Tensor, video_mask: Tensor) -> Tensor:
        """Pooled (B, 3 H)."""
        for layer in self.fusion:
            video = layer(video, video_mask, text, mask)
        video = self.fused_norm(video)
        parts = [mean(text, mask), mean(video[:, 1:], video_mask[:, 1:]), video[:, 0].float()]
        return torch.cat(parts, dim=-1)


class MlmHead(nn.Module):
    """BERT's, tied to its word embeddings."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.transform = nn.ModuleDict(
            {"dense": nn.Linear(sizes.hidden, sizes.hidden), "LayerNorm": nn.LayerNorm(sizes.hidden, eps=1e-12)}
        )
        self.bias = nn.Parameter(torch.zeros(sizes.vocabulary))

    def forward(self, states: Tensor, words: nn.Embedding) -> Tensor:
        states = self.transform["LayerNorm"](F.gelu(self.transform["dense"](states)))
        return F.linear(states, words.weight, self.bias)


class MfmHead(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(sizes.hidden, sizes.hidden)
        self.norm = nn.LayerNorm(sizes.hidden)
        self.out = nn.Linear(sizes.hidden, sizes.feature_dim)

    def forward(self, states: Tensor) -> Tensor:
        return self.out(self.norm(F.gelu(self.dense(states))))


class ItmHead(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.out = nn.Linear(inputs, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.out(pooled).squeeze(-1)


class ItcHead(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.text = nn.Linear(sizes.hidden, sizes.contrast_dim, bias=False)
        self.frames = nn.Linear(sizes.hidden, sizes.contrast_dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / sizes.temperature)))

    def forward(self, text: Tensor, frames: Tensor) -> Tensor:
        """Logits (B, B)."""
        text, frames = F.normalize(self.text(text).float(), dim=-1), F.normalize(self.frames(frames).float(), dim=-1)
        return text @ frames.T * self.log_scale.exp().clamp(max=100)


class Pretraining(nn.Module):
    """Backbone, heads and losses of one architecture; `weights`: of mlm, mfm, itm, itc, distillation.

    all_positions: word logits everywhere; False: at the hidden tokens alone.
    """

    def __init__(self, arch: str, sizes: Sizes, weights: dict[str, float], all_positions: bool):
        super().__init__()
        self.sizes, self.weights, self.all_positions = sizes, weights, all_positions
        classes: dict[str, Any] = {"single_stream": SingleStream, "dual_stream": DualStream}
        self.backbone = classes[arch](sizes)
        self.mlm_head = MlmHead(sizes)
        self.itm_head = ItmHead(self.backbone.pooled * sizes.hidden)
        self.mfm_head = MfmHead(sizes) if weights["mfm"] else None
        self.itc_head = ItcHead(sizes) if weights["itc"] else None

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and losses. batch: input_ids, masked_ids, text_mask, hidden_tokens (B, T), frames (B, F, D), frame_mask
        and hidden_frames (B, F), soft (B, C); texts that are also shown with frames of other videos: pair_rows (P,),
        pair_frames (P, F, D), pair_frame_mask (P, F). Every video has frames."""
        losses = self.single_stream(batch) if isinstance(self.backbone, SingleStream) else self.dual_stream(batch)
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum(), losses

    def single_stream(self, batch: Batch) -> dict[str, Tensor]:
        mask, frames, frame_mask = batch["text_mask"], batch["frames"], batch["frame_mask"]
        shown = frames.masked_fill(batch["hidden_frames"].bool().unsqueeze(-1), 0.0)
        text, video, _ = self.backbone(batch["masked_ids"], mask, shown, frame_mask)
        losses = {"mlm": self.mlm(text, batch)}
        if self.mfm_head is not None:
            losses["mfm"] = self.mfm(video, batch)
        pooled = self.backbone(batch["input_ids"], mask, frames, frame_mask)[2]
        rows = batch["pair_rows"]
        other = self.backbone(batch["input_ids"][rows], mask[rows], batch["pair_frames"], batch["pair_frame_mask"])[2]
        return losses | {"itm": self.itm(pooled, other), "distillation": self.distillation(pooled, batch)}

    def dual_stream(self, batch: Batch) -> dict[str, Tensor]:
        mask, backbone = batch["text_mask"], self.backbone
        losses = {"mlm": self.mlm(backbone.encode_text(batch["masked_ids"], mask), batch)}
        text = backbone.encode_text(batch["input_ids"], mask)
        video, video_mask = backbone.encode_frames(batch["frames"], batch["frame_mask"])
        pooled = backbone.fuse(text, mask, video, video_mask)
        rows = batch["pair_rows"]
        others = backbone.encode_frames(batch["pair_frames"], batch["pair_frame_mask"])
        other = backbone.fuse(text[rows], mask[rows], *others)
        if self.itc_head is not None:
            logits = self.itc_head(mean(text, mask), mean(video[:, 1:], video_mask[:, 1:]))
            target = torch.arange(len(logits))
            losses["itc"] = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return losses | {"itm": self.itm(pooled, other), "distillation": self.distillation(pooled, batch)}

    def mlm(self, text: Tensor, batch: Batch) -> Tensor:
        hidden, words = batch["hidden_tokens"].bool(), self.backbone.text.get_input_embeddings()
        if not self.all_positions:
            return F.cross_entropy(self.mlm_head(text[hidden], words).float(), batch["input_ids"][hidden])
        labels = batch["input_ids"].masked_fill(~hidden, IGNORED)
        logits = self.mlm_head(text, words).float()  # (B, T, V)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORED)

    def mfm(self, video: Tensor, batch: Batch) -> Tensor:
        """All frames against all frames; the diagonal is right, and the hidden ones count."""
        guess = F.normalize(self.mfm_head(video).float().flatten(0, 1), dim=-1)  # type: ignore[misc]
        with torch.autocast("cpu", enabled=False):
            scores = guess @ F.normalize(batch["frames"].flatten(0, 1), dim=-1).T / self.sizes.temperature
        scores = scores + (1 - batch["frame_mask"].flatten().float()) * FAR
        own = -torch.diag(F.log_softmax(scores, dim=-1))
        return own[batch["hidden_frames"].flatten().bool()].mean()

    def itm(self, pooled: Tensor, other: Tensor) -> Tensor:
        matched, mismatched = self.itm_head(pooled).float(), self.itm_head(other).float()
        right = F.binary_cross_entropy_with_logits(matched, torch.ones_like(matched))
        return (right + F.binary_cross_entropy_with_logits(mismatched, torch.zeros_like(mismatched))) / 2

    def distillation(self, pooled: Tensor, batch: Batch) -> Tensor:
        logits = self.backbone.head(pooled).float()
        return -(batch["soft"] * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
