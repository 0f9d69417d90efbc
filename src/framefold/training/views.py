"""What pretraining makes of a batch of videos, where batches are made: a modality that is missing, what is hidden, and
mismatched pairs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framefold.data.batches import ALL, Batch, Transform, VideoDataset, video_keys
from framefold.data.tokens import SpecialTokens
from framefold.errors import UserError
from framefold.objectives import itm, mfm, mlm
from framefold.objectives.keyed import Stream, uniforms
from framefold.params.pretrain import MaskingParams, MismatchedParams


@dataclass(frozen=True)
class InTurn:
    """Transforms of a batch, one after the other."""

    transforms: tuple[Transform, ...]

    def __call__(self, batch: Batch, seed: int, epoch: int) -> Batch:
        for transform in self.transforms:
            batch = transform(batch, seed, epoch)
        return batch


@dataclass(frozen=True)
class ModalityDrop:
    """Makes of some videos what they would be without text, of others what they would be without frames.

    A share `text` of them loses its whole text, a share `frames` all its frames, never both: who has but one of the two
    keeps it. Anew in each epoch.
    """

    text: float
    frames: float
    special: SpecialTokens

    def __call__(self, batch: Batch, seed: int, epoch: int) -> Batch:
        chance = torch.from_numpy(uniforms(Stream.DROP, seed, epoch, batch["key"].numpy(), 1))  # (B, 1)
        ordinary = batch["text_mask"] & ~torch.isin(batch["input_ids"], torch.tensor(self.special.ids))
        has_both = ordinary.any(1, keepdim=True) & batch["frame_mask"].any(1, keepdim=True)  # (B, 1)
        no_text = has_both & (chance < self.text)
        no_frames = has_both & (chance >= self.text) & (chance < self.text + self.frames)
        place = torch.arange(batch["input_ids"].shape[1])  # (T,)
        bare = torch.where(place == 0, self.special.cls, torch.where(place == 1, self.special.sep, self.special.pad))
        changed = {
            "input_ids": torch.where(no_text, bare, batch["input_ids"]),
            "text_mask": batch["text_mask"] & ~(no_text & (place > 1)),
            "frames": batch["frames"].masked_fill(no_frames.unsqueeze(-1), 0.0),
            "frame_mask": batch["frame_mask"] & ~no_frames,
        }
        return batch | changed


@dataclass(frozen=True)
class Masking:
    """Adds to a batch what is hidden of it, and takes away where its words begin.

    "masked_ids" (B, T) int64; "token_places" (M,) int64, the hidden tokens as flat indices into B * T, and what stood
    there, "token_targets" (M,); "hidden_frames" (B, F) bool and "frame_places" (K,) int64, the same as flat indices.
    """

    params: MaskingParams
    special: SpecialTokens

    def __call__(self, batch: Batch, seed: int, epoch: int) -> Batch:
        keys, input_ids = batch["key"].numpy(), batch["input_ids"].numpy()
        unit, starts = self.params.unit, batch.get("word_starts")
        ids, hidden = mlm.mask_tokens(
            input_ids,
            batch["text_mask"].numpy(),
            special=np.array(self.special.ids),
            mask_id=self.special.mask,
            vocab_size=self.special.size,
            rate=self.params.rate,
            max_ngram=self.params.max_ngram if unit == "ngram" else 1,
            seed=seed,
            epoch=epoch,
            keys=keys,
            word_starts=starts.numpy() if starts is not None and unit == "word" else None,
        )
        frames = mfm.mask_frames(batch["frame_mask"].numpy(), self.params.frame_rate, seed, epoch, keys)
        added = {"masked_ids": ids, "token_places": np.flatnonzero(hidden), "token_targets": input_ids[hidden]}
        added |= {"hidden_frames": frames, "frame_places": np.flatnonzero(frames)}
        kept = {name: tensor for name, tensor in batch.items() if name != "word_starts"}
        return kept | {name: torch.from_numpy(array) for name, array in added.items()}


def masking_of(params: MaskingParams, videos: VideoDataset) -> Masking:
    """The masks of `videos`. UserError: whole words are wanted, but their store does not say where words begin."""
    if params.unit == "word" and not videos.tokens.has_words:
        raise UserError(f"pretrain.masking.unit: {videos.tokens.path} has no words; set text.words=true")
    return Masking(params, videos.special)


def training_views(params: MaskingParams, videos: VideoDataset) -> Transform:
    """What is done to a batch in training; evaluation hides tokens and frames by `masking_of` alone."""
    masking = masking_of(params, videos)
    if params.text_drop == params.frames_drop == 0:
        return masking
    return InTurn((ModalityDrop(params.text_drop, params.frames_drop, videos.special), masking))


@dataclass(frozen=True)
class MismatchedVideos:
    """Videos of which a share of each batch is also shown with the frames of another video of the global batch.

    Adds "pair_rows" (P,) int64, rows of this process's part whose text is shown again, "pair_frames" (P, F, D) float32
    and "pair_frame_mask" (P, F) bool. Frames are read once more, not fetched from another process: pairs do not depend
    on how many there are. With hard negatives every process reads the frames of the whole batch.
    """

    videos: VideoDataset
    params: MismatchedParams

    def __len__(self) -> int:
        return len(self.videos)

    def order_keys(self) -> npt.NDArray[np.integer]:
        return self.videos.order_keys()

    def sizes(self) -> npt.NDArray[np.integer]:
        return self.videos.sizes()

    def names(self, positions: npt.NDArray[np.int64]) -> list[str]:
        return self.videos.names(positions)

    def batch(self, positions: npt.NDArray[np.int64], draw: tuple[int, int] | None = None, part: slice = ALL) -> Batch:
        rows, partners = itm.mismatched_pairs(self.params.share, len(positions))
        if self.params.hard and len(rows):
            partners = self._some_hard(positions, rows, partners, draw)
        place = np.full(len(positions), -1)  # of a row of the global batch in this process's part
        place[part] = np.arange(len(place[part]))
        own = place[rows] >= 0
        frames, mask = self.videos.frames(positions[partners[own]], draw)
        pairs = {"pair_rows": place[rows[own]], "pair_frames": frames, "pair_frame_mask": mask}
        added: dict[str, Tensor] = {name: torch.from_numpy(array) for name, array in pairs.items()}
        return self.videos.batch(positions, draw, part) | added

    def _some_hard(
        self, positions: npt.NDArray[np.int64], rows: itm.Rows, partners: itm.Rows, draw: tuple[int, int] | None
    ) -> itm.Rows:
        """The partners, those of a share `hard` of the rows drawn anew for their likeness."""
        keys, (seed, epoch) = video_keys(self.videos.names(positions[rows])), draw or (0, 0)
        chosen, chance = (uniforms(stream, seed, epoch, keys, 1)[:, 0] for stream in (Stream.HARD, Stream.PARTNER))
        frames, mask = self.videos.frames(positions, draw)
        lengths = np.sqrt((frames**2).sum(axis=-1, keepdims=True))
        means = (frames / np.maximum(lengths, 1e-12)).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)[:, None]
        similar = itm.similar_partners(
            means, mask.sum(axis=1) > 0, rows, partners, chance, self.params.temperature, self.params.max_similarity
        )
        return np.where(chosen < self.params.hard, similar, partners)
