"""What pretraining adds to a batch of videos, where batches are made: what is hidden, and mismatched pairs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from framefold.data.batches import ALL, Batch, VideoDataset
from framefold.data.tokens import SpecialTokens
from framefold.objectives import itm, mfm, mlm
from framefold.params.pretrain import MaskingParams


@dataclass(frozen=True)
class Masking:
    """Adds to a batch what is hidden of it.

    "masked_ids" (B, T) int64; "token_places" (M,) int64, the hidden tokens as flat indices into B * T, and what stood
    there, "token_targets" (M,); "hidden_frames" (B, F) bool and "frame_places" (K,) int64, the same as flat indices.
    """

    params: MaskingParams
    special: SpecialTokens

    def __call__(self, batch: Batch, seed: int, epoch: int) -> Batch:
        keys, input_ids = batch["key"].numpy(), batch["input_ids"].numpy()
        ids, hidden = mlm.mask_tokens(
            input_ids,
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
        added = {"masked_ids": ids, "token_places": np.flatnonzero(hidden), "token_targets": input_ids[hidden]}
        added |= {"hidden_frames": frames, "frame_places": np.flatnonzero(frames)}
        return batch | {name: torch.from_numpy(array) for name, array in added.items()}


@dataclass(frozen=True)
class MismatchedVideos:
    """Videos of which a share of each batch is also shown with the frames of another video of the global batch.

    Adds "pair_rows" (P,) int64, rows of this process's part whose text is shown again, "pair_frames" (P, F, D) float32
    and "pair_frame_mask" (P, F) bool. Frames are read once more, not fetched from another process: pairs do not depend
    on how many there are.
    """

    videos: VideoDataset
    share: float

    def __len__(self) -> int:
        return len(self.videos)

    def order_keys(self) -> npt.NDArray[np.int64]:
        return self.videos.order_keys()

    def sizes(self) -> npt.NDArray[np.int64]:
        return self.videos.sizes()

    def names(self, positions: npt.NDArray[np.int64]) -> list[str]:
        return self.videos.names(positions)

    def batch(self, positions: npt.NDArray[np.int64], draw: tuple[int, int] | None = None, part: slice = ALL) -> Batch:
        rows, partners = itm.mismatched_pairs(self.share, len(positions))
        place = np.full(len(positions), -1)  # of a row of the global batch in this process's part
        place[part] = np.arange(len(place[part]))
        own = place[rows] >= 0
        frames, mask = self.videos.frames(positions[partners[own]], draw)
        pairs = {"pair_rows": place[rows[own]], "pair_frames": frames, "pair_frame_mask": mask}
        added: dict[str, Tensor] = {name: torch.from_numpy(array) for name, array in pairs.items()}
        return self.videos.batch(positions, draw, part) | added
