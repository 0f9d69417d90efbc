"""Training a classifier on true labels and judging it on its fold: what teachers and students share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from framefold.data.batches import EpochBatches, VideoDataset
from framefold.data.folds import Folds
from framefold.data.sampling import ResampledVideos
from framefold.data.videos import Videos, fold_rows, read_categories
from framefold.errors import UserError
from framefold.evaluation.metrics import official_scores
from framefold.inference.predict import predict_logits
from framefold.params.finetune import CheckpointParams
from framefold.params.models import InputParams
from framefold.params.supervised import SupervisedParams
from framefold.scratch import Scratch
from framefold.training.loop import AfterEpoch, TrainResult, train
from framefold.training.supervised import (
    SupervisedModel,
    SupervisedTask,
    backbone_of,
    needs_more_than_cross_entropy,
)
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
    params: SupervisedParams,
    *,
    seed: int,
    precision: str,
    scratch: Scratch,
    after_epoch: AfterEpoch | None = None,
) -> TrainResult:
    """Train `model`, whose weights are initialised or warm, on `data.training`, which has labels.

    `after_epoch` and the result get models without the heads that serve training alone.
    """
    task, learning_rates = classifier_task(model, data, params)
    result = train(
        task,
        lambda epoch: EpochBatches(
            epoch_samples(data, params, seed, epoch),
            params.batch_size,
            seed=seed,
            epoch=epoch,
            batch_tokens=params.batch_tokens,
        ),
        params,
        learning_rates=learning_rates,
        seed=seed,
        precision=precision,
        scratch=scratch,
        adversarial=params.adversarial,
        after_epoch=after_epoch and on_backbones(after_epoch),
    )
    return replace(result, model=backbone_of(result.model), ema=backbone_of(result.ema))


def classifier_task(
    model: Any, data: FoldData, params: SupervisedParams
) -> tuple[ClassificationTask | SupervisedTask, dict[str, float]]:
    """The task that `params` ask for, and its learning rates by role. Sizes of classes are those of data.training."""
    if not needs_more_than_cross_entropy(params):
        return ClassificationTask(model, params.label_smoothing), params.peak_rates()
    assert data.training.labels is not None
    supervised = SupervisedModel(model, params, data.categories, data.training.labels)
    return SupervisedTask(supervised), supervised.learning_rates()


def epoch_samples(data: FoldData, params: SupervisedParams, seed: int, epoch: int) -> VideoDataset | ResampledVideos:
    """The videos that an epoch shows: those that train, or a choice of them anew in each epoch."""
    if params.oversampling == 0:
        return data.training
    assert data.training.labels is not None
    return ResampledVideos(data.training, data.training.labels, params.oversampling, seed, epoch)


def on_backbones(after_epoch: AfterEpoch) -> AfterEpoch:
    """`after_epoch` for models with or without heads that serve training alone."""

    def with_backbones(epoch: int, raw: nn.Module, ema: nn.Module) -> Mapping[str, Any]:
        return after_epoch(epoch, backbone_of(raw), backbone_of(ema))

    return with_backbones


def kept_epochs(scores: Sequence[float], params: CheckpointParams) -> list[int]:
    """The epochs whose weights are kept, given each one's score on the fold; of equals the later. Ascending."""
    value = scores if params.select == "top" else range(len(scores))
    ranked = sorted(range(len(scores)), key=lambda epoch: (value[epoch], epoch), reverse=True)
    return sorted(ranked[: params.keep])
