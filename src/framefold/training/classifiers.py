"""Training a classifier on true labels and judging it on its fold: what teachers and students share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from framefold.data.batches import EpochBatches, VideoDataset
from framefold.data.folds import Folds
from framefold.data.videos import Videos, fold_rows, read_categories
from framefold.errors import UserError
from framefold.evaluation.metrics import official_scores
from framefold.inference.predict import predict_logits
from framefold.params.finetune import CheckpointParams, FinetuneParams
from framefold.params.models import InputParams
from framefold.params.training import AdversarialParams, TrainingParams
from framefold.scratch import Scratch
from framefold.training.loop import AfterEpoch, TrainResult, train
from framefold.training.tasks import ClassificationTask


@dataclass(frozen=True)
class FoldData:
    """The videos that train and those that validate, with their labels."""

    training: VideoDataset
    validation: VideoDataset
    categories: Sequence[str]
    batch_size: int  # of predictions: no gradients, so larger than in training

    def logits(self, model: nn.Module, device: torch.device) -> npt.NDArray[np.float32]:
        """(V, C) of the validation videos, in fp32."""
        return predict_logits(model, self.validation, self.batch_size, device)

    def score(self, logits: npt.NDArray[np.float32]) -> float:
        """Official score of logits (V, C) of the validation videos."""
        assert self.validation.labels is not None
        return official_scores(self.validation.labels, logits.argmax(axis=1), self.categories)["score"]


def open_fold(
    videos: Videos, labeled: Folds, validates: npt.NDArray[np.bool_], inputs: InputParams, batch_size: int
) -> FoldData:
    """The labelled videos that train and, where `validates` (N,) is true, those that validate; never the holdout.

    UserError: a duplicate stands on both sides, or no video validates.
    """
    rows = fold_rows(labeled, validates)
    if len(rows[1]) == 0:
        raise UserError("data/folds.parquet: no video validates this fold; lower split.n_folds or add labelled videos")
    training, validation = (videos.dataset(part, inputs, labels=labeled.label) for part in rows)
    return FoldData(training, validation, read_categories(), batch_size)


def open_all(videos: Videos, labeled: Folds, inputs: InputParams, batch_size: int) -> FoldData:
    """Every labelled video trains, the holdout included; none is left to validate."""
    rows = np.arange(len(labeled))
    training, nothing = (videos.dataset(part, inputs, labels=labeled.label) for part in (rows, rows[:0]))
    return FoldData(training, nothing, read_categories(), batch_size)


def train_classifier(
    model: Any,
    data: FoldData,
    params: TrainingParams,
    *,
    label_smoothing: float,
    adversarial: AdversarialParams,
    seed: int,
    precision: str,
    scratch: Scratch,
    after_epoch: AfterEpoch | None = None,
) -> TrainResult:
    """Train `model`, whose weights are initialised or warm, on `data.training`."""
    return train(
        ClassificationTask(model, label_smoothing),
        lambda epoch: EpochBatches(
            data.training, params.batch_size, seed=seed, epoch=epoch, batch_tokens=params.batch_tokens
        ),
        params,
        learning_rates=rates(params),
        seed=seed,
        precision=precision,
        scratch=scratch,
        adversarial=adversarial,
        after_epoch=after_epoch,
    )


def rates(params: TrainingParams) -> dict[str, float]:
    """Peak learning rates by role; only finetuning has a vision tower to train."""
    vision = {"vision": params.vision.lr} if isinstance(params, FinetuneParams) else {}
    return params.lr.model_dump() | vision


def kept_epochs(scores: Sequence[float], params: CheckpointParams) -> list[int]:
    """The epochs whose weights are kept, given each one's score on the fold; of equals the later. Ascending."""
    value = scores if params.select == "top" else range(len(scores))
    ranked = sorted(range(len(scores)), key=lambda epoch: (value[epoch], epoch), reverse=True)
    return sorted(ranked[: params.keep])
