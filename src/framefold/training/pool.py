"""The unlabelled pool as pretraining sees it, and what is measured on the videos of it that are kept aside.

The labelled videos are not in the pool: their labels belong to finetuning, fold by fold.
"""

from dataclasses import dataclass

import numpy as np
import torch

from framefold.data.batches import EpochBatches, VideoDataset
from framefold.data.pseudo_labels import PSEUDO, open_pseudo_labels
from framefold.data.tokens import SpecialTokens, check_aligned
from framefold.data.videos import open_videos
from framefold.errors import UserError
from framefold.objectives.distillation import has_soft_label
from framefold.params.models import StudentParams
from framefold.training.pretraining import PretrainingModel
from framefold.training.views import Masking

MAX_HELD_OUT = 0.2  # share of a small pool


@dataclass(frozen=True)
class Pool:
    training: VideoDataset
    held_out: VideoDataset
    special: SpecialTokens
    feature_dim: int
    n_classes: int


def open_pool(student: StudentParams, teacher: int | None, held_out: int, seed: int) -> Pool:
    """The usable videos with the soft labels of `teacher` (None: the mean of all); `held_out` are kept aside.

    Raises UserError when soft labels and stores do not belong together, a teacher saw what it must not, or the pool is
    empty.
    """
    videos, pseudo = open_videos("unlabeled", student.encoder), open_pseudo_labels()
    check_aligned(pseudo.ids, videos.tokens.ids, f"{PSEUDO} and {videos.tokens.path}")
    soft = pseudo.soft(teacher)
    rows = np.flatnonzero(pseudo.usable)
    if len(rows) < 2:
        raise UserError(
            "pretrain: no unlabelled video is usable; add some that duplicate neither holdout nor test videos"
        )
    aside = min(held_out, max(1, int(len(rows) * MAX_HELD_OUT)))
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(rows))[:aside]] = True
    training, kept = (videos.dataset(part, student.inputs, soft=soft) for part in (rows[~chosen], rows[chosen]))
    return Pool(training, kept, videos.special, videos.features.dim, soft.shape[-1])


@torch.inference_mode()
def measure(
    model: PretrainingModel, pool: Pool, masking: Masking, batch_size: int, device: torch.device
) -> dict[str, float | int]:
    """On the held-out videos, in fp32, with the same masks whatever was trained: masked-token accuracy beside that of
    always guessing the most frequent of the hidden tokens; agreement with the teachers' best class."""
    model.eval().to(device)
    hits, hidden, agreed, labelled = 0, [], 0, 0
    batches = EpochBatches(pool.held_out, batch_size, seed=0, epoch=0, shuffle=False, transform=masking)
    for batch in (batches[i] for i in range(len(batches))):
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        if model.mlm_head is not None:
            targets = batch["token_targets"]
            hits += int((model.masked_token_logits(on_device).argmax(-1).cpu() == targets).sum())
            hidden.append(targets)
        has_label = has_soft_label(batch["soft"])
        same = model.backbone(on_device).argmax(-1).cpu() == batch["soft"].argmax(-1)
        agreed, labelled = agreed + int((same & has_label).sum()), labelled + int(has_label.sum())
    report: dict[str, float | int] = {"teacher_agreement": agreed / max(labelled, 1), "held_out": len(pool.held_out)}
    if hidden and (tokens := torch.cat(hidden)).numel():
        report |= {"mlm_accuracy": hits / len(tokens), "unigram_accuracy": int(tokens.bincount().max()) / len(tokens)}
        report["hidden_tokens"] = len(tokens)
    return report
