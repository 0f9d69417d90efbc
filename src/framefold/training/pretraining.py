"""Pretraining: masked tokens, masked frames, matching, contrast and distillation on the unlabelled pool.

Every batch is seen up to three times: as it is (distillation, contrast, the matched pairs), with hidden tokens and
frames (MLM, MFM), and a share of it with other videos' frames (the mismatched pairs). An objective of weight 0 costs
nothing.
The recipe is that of the winning solutions of the WeChat Big Data Challenge 2022, built on UNITER and ALBEF.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framefold.models.backbone import Batch, Encoded
from framefold.models.heads import ContrastHead, ItmHead, MfmHead, MlmHead
from framefold.objectives import distillation, itc, itm, mfm, mlm
from framefold.objectives.classification import hits
from framefold.params.pretrain import ObjectiveWeights, PretrainParams
from framefold.training.momentum import MomentumContrast, Vectors
from framefold.training.sharing import Share

EMPTY_TEXT = 2  # tokens: [CLS] [SEP]
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


class Totals(NamedTuple):
    """What sums are divided by for means over the global batch, (): see `Share.totals`."""

    tokens: Tensor
    frames: Tensor
    matched: Tensor
    mismatched: Tensor
    labelled: Tensor


class Answers(NamedTuple):
    """How right each answer is (N,), from 0 to 1, and how right a guess would be (N,), any one of the candidates; None
    where guesses are better than that."""

    right: Tensor
    by_guess: Tensor | None


class PretrainingModel(nn.Module):
    """A backbone with the heads of its objectives.

    forward: (batch of `views.training_views` and `views.MismatchedVideos`, this process's share of the global batch,
    the model's own EMA where contrast asks for it) -> (total loss, its detached parts). The processes' videos are each
    other's negatives.
    """

    def __init__(self, backbone: Any, mlm_head: MlmHead, weights: ObjectiveWeights, params: PretrainParams):
        super().__init__()
        self.backbone = backbone
        self.weights, self.temperature, self.labels = weights, params.contrast.temperature, params.labels
        hidden, contrast = backbone.hidden_size, params.contrast
        self.mlm_head = mlm_head if weights.mlm else None
        self.mfm_head = MfmHead(hidden, backbone.feature_dim) if weights.mfm else None
        self.itm_head = ItmHead(backbone.pooled_size) if weights.itm else None
        self.itc_head = ContrastHead(hidden, hidden, contrast.embed_dim, contrast.temperature) if weights.itc else None
        self.momentum = MomentumContrast(contrast) if weights.itc and contrast.uses_momentum else None

    @property
    def word_embeddings(self) -> nn.Embedding:
        return self.backbone.word_embeddings

    def role_of(self, name: str) -> str:
        prefix, _, rest = name.partition(".")
        return self.backbone.role_of(rest) if prefix == "backbone" else "head"

    def forward(self, batch: Batch, share: Share, average: Any = None) -> tuple[Tensor, Parts]:
        losses: Losses = {}
        parts: Parts = {}
        totals = self._totals(batch, share)
        if self.mlm_head is not None or self.mfm_head is not None:
            self._masked(batch, share, totals, losses, parts)
        if self.weights.distillation or self.weights.itm or self.weights.itc:
            self._whole(batch, share, average, totals, losses, parts)
        parts |= {f"loss_{name}": loss.detach() for name, (_, loss) in losses.items()}
        return torch.stack([weight * loss for weight, loss in losses.values()]).sum(), parts

    def _totals(self, batch: Batch, share: Share) -> Totals:
        """In one exchange; an objective that is off counts nothing."""
        none = batch["frame_mask"].new_zeros((), dtype=torch.float32)
        mlm_head, mfm_head, itm_head = (head is not None for head in (self.mlm_head, self.mfm_head, self.itm_head))
        counts = [
            none + len(batch["token_places"]) if mlm_head else none,
            none + len(batch["frame_places"]) if mfm_head else none,
            _comparable(batch).sum() if itm_head else none,
            _valid_pairs(batch).sum() if itm_head else none,
            distillation.has_soft_label(batch["soft"]).sum() if self.weights.distillation else none,
        ]
        return Totals(*share.totals(counts))

    def _whole(self, batch: Batch, share: Share, average: Any, totals: Totals, losses: Losses, parts: Parts) -> None:
        """The objectives on the batch as it is."""
        clean, streams = self._as_it_is(batch)
        if self.weights.distillation:
            self._distillation(batch, clean, totals, losses, parts)
        if self.itm_head is not None:
            self._matching(batch, clean, streams, totals, losses, parts)
        if self.momentum is not None and streams is not None:
            self._momentum_contrast(batch, streams, share, average, losses, parts)
        elif self.itc_head is not None and streams is not None:
            self._contrast(batch, streams, share, losses, parts)

    def _as_it_is(self, batch: Batch) -> tuple[Encoded, tuple[Tensor, ...] | None]:
        """And its streams, where the backbone has two."""
        if not isinstance(self.backbone, TwoStreams):
            return self.backbone.encode(batch), None
        streams = (*self.backbone.encode_text(batch), *self.backbone.encode_frames(batch))
        return self.backbone.fuse(*streams), streams

    def _masked(self, batch: Batch, share: Share, totals: Totals, losses: Losses, parts: Parts) -> None:
        """MLM and MFM on one view, with tokens hidden for the one and frames for the other."""
        text, frames = self._hidden_view(batch)
        if self.mlm_head is not None:
            logits, targets = self._token_logits(text, batch), batch["token_targets"]  # (M, V), (M,)
            losses["mlm"] = self.weights.mlm, mlm.masked_token_loss(logits, targets, totals.tokens)
            parts["mlm_accuracy"] = hits(logits, targets).sum() / totals.tokens
        if self.mfm_head is not None:
            guess = self.mfm_head(frames, batch["frame_places"])  # (K, D)
            before = share.rank * share.longest * batch["frames"].shape[1]  # frames of the processes before this one
            candidates, real = share.gather(batch["frames"]), share.gather_mask(batch["frame_mask"])
            places = batch["frame_places"] + before
            loss = mfm.frame_nce(guess, places, candidates, real, self.temperature, totals.frames)
            losses["mfm"] = self.weights.mfm, loss

    def _hidden_view(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Text states (B, T, H) and frame states (B, F, H); these are raw features where nothing asks for them."""
        if self.mfm_head is None and isinstance(self.backbone, TwoStreams):  # its text never sees the frames
            return self.backbone.encode_text(batch, batch["masked_ids"])[0], batch["frames"]
        tokens, frames = batch["input_ids"], batch["frames"]
        if self.mlm_head is not None:
            tokens = batch["masked_ids"]
        if self.mfm_head is not None:
            frames = frames.masked_fill(batch["hidden_frames"].unsqueeze(-1), 0.0)
        encoded = self.backbone.encode(batch, input_ids=tokens, frames=frames)
        return encoded.text, encoded.frames

    def _token_logits(self, text: Tensor, batch: Batch) -> Tensor:
        assert self.mlm_head is not None
        return self.mlm_head(text, batch["token_places"], self.word_embeddings)

    def _distillation(self, batch: Batch, clean: Encoded, totals: Totals, losses: Losses, parts: Parts) -> None:
        logits, soft = self.backbone.head(clean.pooled), batch["soft"]  # (B, C), (B, C)
        settings = self.labels.model_dump(include={"hard", "temperature", "min_confidence"})
        loss = distillation.distillation_loss(logits, soft, totals.labelled, **settings)
        losses["distillation"] = self.weights.distillation, loss
        parts["teacher_agreement"] = distillation.agreement(logits, soft, totals.labelled)

    def _matching(
        self,
        batch: Batch,
        clean: Encoded,
        streams: tuple[Tensor, ...] | None,
        totals: Totals,
        losses: Losses,
        parts: Parts,
    ) -> None:
        assert self.itm_head is not None
        swapped = self._swapped(batch, streams)
        matched = itm.Pairs(self.itm_head(clean.pooled), _comparable(batch), totals.matched)
        mismatched = itm.Pairs(self.itm_head(swapped.pooled), _valid_pairs(batch), totals.mismatched)
        losses["itm"] = self.weights.itm, itm.matching_loss(matched, mismatched)
        parts["itm_accuracy"] = itm.matching_accuracy(matched, mismatched)

    def _swapped(self, batch: Batch, streams: tuple[Tensor, ...] | None) -> Encoded:
        """Texts with the frames of other videos."""
        rows = batch["pair_rows"]
        others = {"frames": batch["pair_frames"], "frame_mask": batch["pair_frame_mask"]}
        if streams is not None:
            text, text_mask = (part.index_select(0, rows) for part in streams[:2])
            return self.backbone.fuse(text, text_mask, *self.backbone.encode_frames(others))
        texts = {name: batch[name].index_select(0, rows) for name in ("input_ids", "text_mask")}
        if "real_pairs" in batch:
            others["real_inputs"] = batch["real_pairs"]
        return self.backbone.encode(texts | others)

    def _contrast(self, batch: Batch, streams: tuple[Tensor, ...], share: Share, losses: Losses, parts: Parts) -> None:
        assert self.itc_head is not None
        text, frames, scale = self.itc_head(*self.backbone.unimodal(*streams))
        text, frames = share.gather(text), share.gather(frames)
        valid = share.gather_mask(_comparable(batch))
        losses["itc"] = self.weights.itc, itc.info_nce(text, frames, valid, scale)
        parts["itc_accuracy"] = itc.retrieval_accuracy(text, frames, valid)

    def _momentum_contrast(
        self, batch: Batch, streams: tuple[Tensor, ...], share: Share, average: Any, losses: Losses, parts: Parts
    ) -> None:
        """`average` is the EMA: contrast.uses_momentum needs one, by the params' own check."""
        assert self.itc_head is not None
        assert self.momentum is not None
        text, frames, scale = self.itc_head(*self.backbone.unimodal(*streams))
        momentum, valid = average.contrast_vectors(batch), _comparable(batch)
        loss, accuracy = self.momentum(Vectors(text, frames), scale, momentum, batch["key"], valid, share)
        losses["itc"], parts["itc_accuracy"] = (self.weights.itc, loss), accuracy

    @torch.no_grad()
    def answers(self, batch: Batch) -> dict[str, Answers]:
        """Of each self-supervised objective that the model has, on a batch as in training, in one process.

        mlm: the hidden tokens, each among all tokens. mfm: the hidden frames, each among all real frames of the batch.
        itm: does the text of a mismatched pair belong to those frames, and does it to its own. itc: for each video with
        both, its frames by its text among those of all, and the other way round; half an answer each, since one
        similarity decides both.
        """
        found: dict[str, Answers] = {}
        if self.mlm_head is not None or self.mfm_head is not None:
            text, frames = self._hidden_view(batch)
        if self.mlm_head is not None:
            found["mlm"] = Answers(hits(self._token_logits(text, batch), batch["token_targets"]), None)
        if self.mfm_head is not None and len(batch["frame_places"]):  # else there may be no candidate at all
            guess, real = self.mfm_head(frames, batch["frame_places"]), batch["frame_mask"]
            found["mfm"] = found_among(guess, batch["frames"].flatten(0, 1), real.flatten(), batch["frame_places"])
        if self.itm_head is None and self.itc_head is None:
            return found
        clean, streams = self._as_it_is(batch)
        if self.itm_head is not None:
            counts = _valid_pairs(batch)
            own = self.itm_head(clean.pooled).index_select(0, batch["pair_rows"])[counts]
            other = self.itm_head(self._swapped(batch, streams).pooled)[counts]
            right = torch.cat([own > 0, other <= 0]).float()
            found["itm"] = Answers(right, torch.full_like(right, 0.5))
        if self.itc_head is not None and streams is not None:
            sides = self.itc_head(*self.backbone.unimodal(*streams))[:2]
            valid = _comparable(batch)
            places = valid.nonzero().squeeze(1)
            both = [found_among(one[valid], other, valid, places) for one, other in (sides, sides[::-1])]
            found["itc"] = Answers((both[0].right + both[1].right) / 2, both[0].by_guess)
        return found

    @torch.no_grad()
    def contrast_vectors(self, batch: Batch) -> Vectors:
        """What this model, as a momentum encoder, makes of a batch."""
        assert self.itc_head is not None
        streams = (*self.backbone.encode_text(batch), *self.backbone.encode_frames(batch))
        return Vectors(*self.itc_head(*self.backbone.unimodal(*streams))[:2])


def found_among(vectors: Tensor, candidates: Tensor, real: Tensor, places: Tensor) -> Answers:
    """Whether the most similar of the `real` (C,) candidates (C, D), by cosine, to each of vectors (N, D) is the one at
    its place (N,)."""
    unit = F.normalize(candidates.float(), dim=-1)
    similarity = (F.normalize(vectors.float(), dim=-1) @ unit.T).masked_fill(~real, -torch.inf)
    right = (similarity.argmax(dim=-1) == places).float()
    return Answers(right, torch.full_like(right, 1.0) / real.sum().clamp(min=1))


def _comparable(batch: Batch) -> Tensor:
    """Videos whose text and frames can be compared, (B,) bool: without frames, or without text, one matches any."""
    return batch["frame_mask"].any(dim=1) & (batch["text_mask"].sum(dim=1) > EMPTY_TEXT)


def _valid_pairs(batch: Batch) -> Tensor:
    """Mismatched pairs whose texts and frames can both be compared with their own, (P,) bool."""
    return _comparable(batch).index_select(0, batch["pair_rows"]) & batch["pair_frame_mask"].any(dim=1)
