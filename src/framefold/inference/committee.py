"""Who labels the pool: the cross-fitted teachers, or the students of an earlier round."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from framefold.data.folds import Folds
from framefold.data.origins import check_trained_folds, read_origins
from framefold.data.pseudo_labels import TEACHERS
from framefold.errors import UserError
from framefold.inference.predictions import read_predictions, softmax
from framefold.models.registry import load_model
from framefold.params.models import InputParams
from framefold.params.teacher import TeacherParams
from framefold.storage import read_json


@dataclass(frozen=True)
class Committee:
    """Models by the fold that they held out; those of one fold are asked together and called one teacher."""

    folder: Path
    n_folds: int  # a video's teacher is the one whose fold is the video's student fold modulo this
    members: dict[int, list[Path]]  # fold -> folders of its models, one an architecture
    out_of_fold: str  # name of the file with predictions on the fold
    encoder: str
    inputs: InputParams

    def trained_folds(self, labeled: Folds, leaky: bool) -> dict[int, list[int]]:
        """Fold -> student folds that its models learned. UserError, unless `leaky`: they saw what they must not."""
        trained = read_origins(self.members, labeled, self.n_folds, leaky)
        if not leaky:
            check_trained_folds(trained, self.n_folds, self.folder)
        return trained

    def load(self, device: torch.device) -> dict[int, list[nn.Module]]:
        """All models, on the device and in evaluation mode."""
        return {fold: [load_model(folder).to(device) for folder in folders] for fold, folders in self.members.items()}

    def predictions(self, labeled: Folds) -> "OutOfFold":
        """Every model's logits on the videos of its own fold."""
        ids, logits = list[str](), []
        for folders in self.members.values():
            parts = [read_predictions(folder / self.out_of_fold) for folder in folders]
            if any(part[0] != parts[0][0] for part in parts):
                raise UserError(f"{self.folder}: architectures judge other videos; rebuild them with `dvc repro`")
            ids += parts[0][0]
            logits.append(np.stack([part[1] for part in parts]))
        label_of = dict(zip(labeled.ids.to_pylist(), labeled.label.tolist(), strict=True))
        return OutOfFold(np.array([label_of[video] for video in ids], np.int64), np.concatenate(logits, axis=1))


class OutOfFold(NamedTuple):
    """Labelled videos of all folds and what the models that never saw them say."""

    truth: npt.NDArray[np.int64]  # (N,)
    logits: npt.NDArray[np.float32]  # (M, N, C), M architectures

    def probs(self, temperature: float) -> npt.NDArray[np.float64]:
        """(N, C), the mean over architectures."""
        return np.mean([softmax(part / temperature) for part in self.logits], axis=0)


def teachers(params: TeacherParams) -> Committee:
    members = {fold: [TEACHERS / str(fold)] for fold in sorted(params.folds)}
    return Committee(TEACHERS, params.n_folds, members, "out_of_fold.parquet", params.encoder, params.inputs)


def students(folder: Path, archs: Sequence[str], labeled: Folds, encoder: str, inputs: InputParams) -> Committee:
    """The averaged students below `folder` (models/rounds/<name>/swa). UserError: architectures have other folds."""
    folds = [sorted(map(int, read_json(folder / arch / "metrics.json")["folds"])) for arch in archs]
    if any(own != folds[0] for own in folds):
        raise UserError(f"{folder}: architectures have other folds, {folds}; rebuild them with `dvc repro`")
    members = {fold: [folder / arch / str(fold) for arch in archs] for fold in folds[0]}
    if any(read_json(member / "config.json")["vision"] for member in members[folds[0][0]]):
        raise UserError(
            f"{folder}: students with vision towers of their own do not label; set finetune.vision.lr to 0 or name "
            "other teachers"
        )
    return Committee(folder, labeled.n_folds, members, "validation.parquet", encoder, inputs)
