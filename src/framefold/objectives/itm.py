"""Image-text matching: does this text belong to these frames (ViLBERT, Lu et al. 2019; UNITER, Chen et al. 2020)."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

Rows = npt.NDArray[np.int64]


def mismatched_pairs(share: float, batch_size: int) -> tuple[Rows, Rows]:
    """Rows (M,) whose text is shown with the frames of other rows (M,); M is `share` of the batch, rounded up.

    Rows are taken at even steps and partners half a batch away, since a batch may be sorted by length. A batch of one
    has no pairs. Each row stands one place further in its step than the last: processes take the rows of a batch in
    turn, and each then has some of the pairs.
    """
    count = math.ceil(share * batch_size) if batch_size > 1 else 0
    number = np.arange(count)
    rows = number * batch_size // max(count, 1) + number % max(batch_size // max(count, 1), 1)
    return rows, (rows + batch_size // 2) % max(batch_size, 1)


def similar_partners(
    means: npt.NDArray[np.floating],
    has_frames: npt.NDArray[np.bool_],
    rows: Rows,
    partners: Rows,
    chance: npt.NDArray[np.float64],
    temperature: float,
    max_similarity: float,
) -> Rows:
    """For each of `rows` (M,) another row whose frames are like its own, drawn with p ~ exp(similarity / temperature).

    The hard negatives of ALBEF (Li et al. 2021), by cosines of mean frames (B, D) after the batch's own mean is taken
    off, which is most of what features have in common. A row above max_similarity is a near duplicate and never drawn;
    rows without frames, has_frames (B,), neither. Where nobody is left, `partners` (M,) stay. chance (M,): uniform
    numbers in [0, 1). In float64, and not by a matrix product: threads and workers must agree on who is drawn.
    """
    centred = np.where(has_frames[:, None], means, 0).astype(np.float64)
    centred[has_frames] -= centred.sum(axis=0) / max(has_frames.sum(), 1)
    unit = centred / np.maximum(np.sqrt((centred**2).sum(axis=1, keepdims=True)), 1e-12)
    similarity = np.einsum("md,bd->mb", unit[rows], unit)
    possible = has_frames & (similarity <= max_similarity) & (np.arange(len(means)) != rows[:, None])
    possible &= has_frames[rows, None]
    score = np.where(possible, similarity, -np.inf) / temperature
    odds = np.exp(score - score.max(axis=1, keepdims=True, initial=-2 / temperature)).cumsum(axis=1)  # (M, B)
    mark = np.minimum(chance * odds[:, -1], np.nextafter(odds[:, -1], 0))
    return np.where(possible.any(axis=1), (odds <= mark[:, None]).sum(axis=1), partners)


@dataclass(frozen=True)
class Pairs:
    """Logits (P,) of "belongs together", which of them count (P,) bool, and how many (): those of all processes."""

    logits: Tensor
    valid: Tensor
    total: Tensor

    def mean(self, values: Tensor) -> Tensor:
        return (values * self.valid).sum() / self.total


def matching_loss(matched: Pairs, mismatched: Pairs) -> Tensor:
    """Binary cross-entropy, a scalar: both kinds of pairs weigh the same, however many there are of each."""
    right, wrong = matched.mean(F.softplus(-matched.logits.float())), F.softplus(mismatched.logits.float())
    return (right + mismatched.mean(wrong)) / 2


def matching_accuracy(matched: Pairs, mismatched: Pairs) -> Tensor:
    """Balanced accuracy, a scalar: 0.5 is chance."""
    right, wrong = matched.mean(matched.logits.detach() > 0), mismatched.mean(mismatched.logits.detach() <= 0)
    return (right + wrong) / 2
