"""Masked frame modelling: which of the batch's frames was hidden here (UNITER, Chen et al. 2020; HERO, Li et al.)."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from framefold.objectives.keyed import Stream, uniforms


def mask_frames(
    frame_mask: npt.NDArray[np.bool_], rate: float, seed: int, epoch: int, keys: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Choose each real frame with probability `rate`: (B, F) bool.

    frame_mask (B, F): real frames. A video's choice depends on (seed, epoch, its key) alone, not on its neighbours.
    """
    return frame_mask & (uniforms(Stream.FRAMES, seed, epoch, keys, frame_mask.shape[1]) < rate)


def frame_nce(
    predicted: Tensor, places: Tensor, frames: Tensor, frame_mask: Tensor, temperature: float, total: Tensor
) -> Tensor:
    """Mean InfoNCE over the hidden frames, a scalar; zero if there are none.

    predicted (M, D): guesses of the hidden frames, which stand at `places` (M,) int64 of frames.flatten(0, 1).
    frames (B, F, D): the true features; all real frames, those where frame_mask (B, F) is true, are the candidates, the
    hidden one included. total (): how many the mean is over, those of other processes included.
    """
    candidates = F.normalize(frames.flatten(0, 1).float(), dim=-1)  # (B * F, D)
    with torch.autocast(frames.device.type, enabled=False):  # frames of one video differ by less than bf16 resolves
        similarity = F.normalize(predicted.float(), dim=-1) @ candidates.T  # (M, B * F)
    logits = (similarity / temperature).masked_fill(~frame_mask.flatten(), -torch.inf)
    return F.cross_entropy(logits, places, reduction="sum") / total
