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


def frame_nce(predicted: Tensor, frames: Tensor, frame_mask: Tensor, hidden: Tensor, temperature: float) -> Tensor:
    """Mean InfoNCE over the hidden frames, a scalar; zero if there are none.

    predicted (M, D): guesses of the hidden frames in their order. frames (B, F, D): the true features; all real frames
    of the batch, the hidden one included, are the candidates. frame_mask, hidden (B, F) bool, hidden within frame_mask.
    """
    candidates = F.normalize(frames[frame_mask].float(), dim=-1)  # (N, D)
    place = frame_mask.flatten().cumsum(0).view_as(frame_mask) - 1  # (B, F): position among the candidates
    with torch.autocast(frames.device.type, enabled=False):  # frames of one video differ by less than bf16 resolves
        similarity = F.normalize(predicted.float(), dim=-1) @ candidates.T  # (M, N)
    return F.cross_entropy(similarity / temperature, place[hidden], reduction="sum") / max(len(predicted), 1)
