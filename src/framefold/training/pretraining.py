"""Pretraining: masked tokens, masked frames, matching, contrast and distillation on the unlabelled pool.

Every batch is seen up to three times: as it is (distillation, contrast, the matched pairs), with hidden tokens and
frames (MLM, MFM), and a share of it with other videos' frames (the mismatched pairs). An objective of weight 0 costs
nothing.
The recipe is that of the winning solutions of the WeChat Big Data Challenge 2022, built on UNITER and ALBEF.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from framefold.data.tokens import SpecialTokens
from framefold.models.backbone import Batch, Encoded
from framefold.models.heads import ContrastHead, ItmHead, MfmHead, MlmHead
from framefold.objectives import classification, distillation, itc, itm, mfm, mlm
from framefold.params.pretrain import MaskingParams, ObjectiveWeights, PretrainParams

Losses = dict[str, tuple[float, Tensor]]  # name -> weight, loss
Parts = dict[str, Tensor]


@runtime_checkable
class TwoStreams(Protocol):
    """A backbone whose streams can be encoded apart: text states are reused, and unimodal vectors exist."""

    def encode_text(self, batch: Batch, input_ids: Tensor | None = None) -> tuple[Tensor, Tensor]: ...
    def encode_frames(self, batch: Batch) -> tuple[Tensor, Tensor]: ...
    def fuse(self, text: Tensor, text_mask: Tensor, frames: Tensor, frame_mask: Tensor) -> Encoded: ...
    def unimodal(
        self, text: Tensor, text_mask: Tensor, frames: Tensor, frame_mask: Tensor
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Masking:
    """Adds to a batch what is hidden of it: masked_ids (B, T), hidden_tokens (B, T) bool, hidden_frames (B, F) bool."""

    params: MaskingParams
    special: SpecialTokens

    def __call__(self, batch: dict[str, Tensor], seed: int, epoch: int) -> dict[str, Tensor]:
        keys = batch["key"].numpy()
        ids, hidden = mlm.mask_tokens(
            batch["input_ids"].numpy(),
            batch["text_mask"].numpy(),
            special=np.array(self.special.ids),
            mask_id=self.special.mask,
            vocab_size=self.special.size,
            rate=self.params.rate,
            max_ngram=self.params.max_ngram,
            seed=seed,
            epoch=epoch,
            keys=keys,
        )
        frames = mfm.mask_frames(batch["frame_mask"].numpy(), self.params.frame_rate, seed, epoch, keys)
        added = {"masked_ids": ids, "hidden_tokens": hidden, "hidden_frames": frames}
        return batch | {name: torch.from_numpy(array) for name, array in added.items()}


class PretrainingModel(nn.Module):
    """A backbone with the heads of its objectives. forward: batch of `Masking` -> (total loss, its detached parts)."""

    def __init__(self, backbone: Any, mlm_head: MlmHead, weights: ObjectiveWeights, params: PretrainParams):
        super().__init__()
        self.backbone = backbone
        self.weights, self.mismatched, self.temperature = weights, params.mismatched, params.contrast.temperature
        hidden, contrast = backbone.hidden_size, params.contrast
        self.mlm_head = mlm_head if weights.mlm else None
        self.mfm_head = MfmHead(hidden, backbone.feature_dim) if weights.mfm else None
        self.itm_head = ItmHead(backbone.pooled_size) if weights.itm else None
        self.itc_head = ContrastHead(hidden, hidden, contrast.embed_dim, contrast.temperature) if weights.itc else None

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.backbone.word_embeddings

    def role_of(self, name: str) -> str:
        prefix, _, rest = name.partition(".")
        return self.backbone.role_of(rest) if prefix == "backbone" else "head"

    def forward(self, batch: Batch) -> tuple[Tensor, Parts]:
        losses: Losses = {}
        parts: Parts = {}
        if self.mlm_head is not None or self.mfm_head is not None:
            self._masked(batch, losses, parts)
        if self.weights.distillation or self.weights.itm or self.weights.itc:
            self._whole(batch, losses, parts)
        parts |= {f"loss_{name}": loss.detach() for name, (_, loss) in losses.items()}
        return torch.stack([weight * loss for weight, loss in losses.values()]).sum(), parts

    def _whole(self, batch: Batch, losses: Losses, parts: Parts) -> None:
        """The objectives on the batch as it is."""
        streams = None
        if isinstance(self.backbone, TwoStreams):
            streams = (*self.backbone.encode_text(batch), *self.backbone.encode_frames(batch))
        clean = self.backbone.encode(batch) if streams is None else self.backbone.fuse(*streams)
        if self.weights.distillation:
            self._distillation(batch, clean, losses, parts)
        if self.itm_head is not None:
            self._matching(batch, clean, streams, losses, parts)
        if self.itc_head is not None and streams is not None:
            self._contrast(batch, streams, losses, parts)

    def _masked(self, batch: Batch, losses: Losses, parts: Parts) -> None:
        """MLM and MFM on one view with both hidden."""
        text, frames = self._hidden_view(batch)
        if self.mlm_head is not None:
            logits = self.mlm_head(text, batch["hidden_tokens"], self.word_embeddings)  # (M, V)
            targets = batch["input_ids"][batch["hidden_tokens"]]  # (M,)
            losses["mlm"] = self.weights.mlm, mlm.masked_token_loss(logits, targets)
            parts["mlm_accuracy"] = classification.accuracy(logits, targets)
        if self.mfm_head is not None:
            guess = self.mfm_head(frames, batch["hidden_frames"])  # (M, D)
            loss = mfm.frame_nce(
                guess, batch["frames"], batch["frame_mask"], batch["hidden_frames"], temperature=self.temperature
            )
            losses["mfm"] = self.weights.mfm, loss

    def _hidden_view(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Text states (B, T, H) and frame states (B, F, H); these are raw features where nothing asks for them."""
        if self.mfm_head is None and isinstance(self.backbone, TwoStreams):  # its text never sees the frames
            return self.backbone.encode_text(batch, batch["masked_ids"])[0], batch["frames"]
        shown = batch["frames"].masked_fill(batch["hidden_frames"].unsqueeze(-1), 0.0)
        encoded = self.backbone.encode(batch, input_ids=batch["masked_ids"], frames=shown)
        return encoded.text, encoded.frames

    def masked_token_logits(self, batch: Batch) -> Tensor:
        """(M, V) at the hidden tokens of a batch, in its order."""
        assert self.mlm_head is not None
        return self.mlm_head(self._hidden_view(batch)[0], batch["hidden_tokens"], self.word_embeddings)

    def _distillation(self, batch: Batch, clean: Encoded, losses: Losses, parts: Parts) -> None:
        logits = self.backbone.head(clean.pooled)  # (B, C)
        losses["distillation"] = self.weights.distillation, distillation.soft_cross_entropy(logits, batch["soft"])
        parts["teacher_agreement"] = distillation.agreement(logits, batch["soft"])

    def _matching(
        self, batch: Batch, clean: Encoded, streams: tuple[Tensor, ...] | None, losses: Losses, parts: Parts
    ) -> None:
        """Videos without frames match anything and are left out."""
        assert self.itm_head is not None
        rows, partners = itm.mismatched_pairs(self.mismatched, len(clean.pooled), clean.pooled.device)
        has_frames = batch["frame_mask"].any(dim=1)  # (B,)
        matched = self.itm_head(clean.pooled)[has_frames]
        swapped = self._swapped(batch, streams, rows, partners).pooled
        mismatched = self.itm_head(swapped)[has_frames[rows] & has_frames[partners]]
        losses["itm"] = self.weights.itm, itm.matching_loss(matched, mismatched)
        parts["itm_accuracy"] = itm.matching_accuracy(matched, mismatched)

    def _swapped(self, batch: Batch, streams: tuple[Tensor, ...] | None, rows: Tensor, partners: Tensor) -> Encoded:
        """The texts of `rows` with the frames of `partners`."""
        if streams is not None:
            text, text_mask, frames, frame_mask = streams
            return self.backbone.fuse(text[rows], text_mask[rows], frames[partners], frame_mask[partners])
        texts = {name: batch[name][rows] for name in ("input_ids", "text_mask")}
        return self.backbone.encode(texts | {name: batch[name][partners] for name in ("frames", "frame_mask")})

    def _contrast(self, batch: Batch, streams: tuple[Tensor, ...], losses: Losses, parts: Parts) -> None:
        assert self.itc_head is not None
        has_frames = batch["frame_mask"].any(dim=1)
        text, frames, scale = self.itc_head(*self.backbone.unimodal(*streams))
        text, frames = text[has_frames], frames[has_frames]
        losses["itc"] = self.weights.itc, itc.info_nce(text, frames, scale)
        parts["itc_accuracy"] = itc.retrieval_accuracy(text, frames)
