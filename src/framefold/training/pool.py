"""The unlabelled pool as pretraining and the first phase of finetuning see it.

The labelled videos are not in the pool: their labels belong to finetuning, fold by fold.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framefold.data.array_files import ArrayFile
from framefold.data.batches import VideoDataset
from framefold.data.pseudo_labels import open_pseudo_labels
from framefold.data.sampling import ResampledVideos
from framefold.data.soft_targets import NO_CLASS, SoftTargets, label_weights, used_classes
from framefold.data.tokens import SpecialTokens, check_aligned
from framefold.data.videos import Videos, open_videos
from framefold.errors import UserError
from framefold.params.labels import LabelParams
from framefold.params.models import StudentParams

MAX_HELD_OUT = 0.2  # share of a small pool


@dataclass(frozen=True)
class Pool:
    training: VideoDataset
    held_out: VideoDataset
    special: SpecialTokens
    feature_dim: int
    n_classes: int


@dataclass(frozen=True)
class LabelledPool:
    """Videos of the pool whose soft labels are used, by themselves."""

    videos: VideoDataset
    classes: npt.NDArray[np.int32]  # (N,) best class of each
    params: LabelParams

    def epoch(self, seed: int, epoch: int) -> VideoDataset | ResampledVideos:
        """N videos: everyone once, or with `balance` classes nearer to equally often."""
        if self.params.balance == 0:
            return self.videos
        return ResampledVideos(self.videos, self.classes, self.params.balance, seed, epoch)


def open_pool(
    student: StudentParams, pseudo: Path, teacher: int | None, labels: LabelParams, held_out: int, seed: int
) -> Pool:
    """The usable videos with the soft labels in `pseudo` of `teacher` (None: the mean of all), used as `labels` says;
    `held_out` are kept aside, with the stored labels.

    Raises UserError when soft labels and stores do not belong together, a teacher saw what it must not, or the pool is
    empty.
    """
    videos, soft, usable = _open_labels(student, pseudo, teacher)
    rows = np.flatnonzero(usable)
    if len(rows) < 2:
        raise UserError(
            "pretrain: no unlabelled video is usable; add some that duplicate neither holdout nor test videos"
        )
    aside = min(held_out, max(1, int(len(rows) * MAX_HELD_OUT)))
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(rows))[:aside]] = True
    targets = SoftTargets(soft, label_weights(soft, rows[~chosen], labels))
    training = videos.dataset(rows[~chosen], student.inputs, soft=targets)
    kept = videos.dataset(rows[chosen], student.inputs, soft=soft)
    return Pool(training, kept, videos.special, videos.features.dim, soft.shape[-1])


def open_labelled_pool(student: StudentParams, pseudo: Path, teacher: int | None, labels: LabelParams) -> LabelledPool:
    """The usable videos that have a label, else as `open_pool`. UserError: there is none."""
    videos, soft, usable = _open_labels(student, pseudo, teacher)
    classes = used_classes(soft, labels)
    rows = np.flatnonzero(usable & (classes != NO_CLASS))
    if len(rows) == 0:
        raise UserError("finetune.pseudo: no soft label is left to train on; lower labels.min_confidence")
    dataset = videos.dataset(rows, student.inputs, soft=soft)
    return LabelledPool(dataset, classes[rows], labels)


def _open_labels(
    student: StudentParams, folder: Path, teacher: int | None
) -> tuple[Videos, ArrayFile, npt.NDArray[np.bool_]]:
    """Videos of the pool, their soft labels (N, C) and which are usable (N,)."""
    videos, pseudo = open_videos("unlabeled", student.encoder), open_pseudo_labels(folder)
    check_aligned(pseudo.iterate_ids(), videos.tokens.iterate_ids(), f"{folder} and {videos.tokens.path}")
    return videos, pseudo.soft(teacher), pseudo.usable
