"""One SWA model per validation fold, its predictions, and what the folds' models say together."""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from framefold.data.folds import Folds
from framefold.data.videos import HOLDOUT, Videos
from framefold.inference.predict import iterate_logits
from framefold.inference.predictions import mean_logits, read_predictions, write_predictions
from framefold.inference.weight_averaging import averaged_model, kept_checkpoints
from framefold.models.registry import load_model, save_model
from framefold.params.models import InputParams

LAST = "last_checkpoint.parquet"  # of the last EMA checkpoint alone: compared with the average, then dropped
PREDICTED = ("validation.parquet", "holdout.parquet", "test.parquet")
PUBLISHED = ("model.safetensors", "config.json", "curves.csv", *PREDICTED)


@dataclass(frozen=True)
class Predictor:
    """Predicts labelled and test videos with any model; `pause` is called between blocks and may raise to stop."""

    labeled: Videos
    test: Videos
    folds: Folds
    inputs: InputParams
    batch_size: int
    device: torch.device
    pause: Callable[[], None]

    def validation(self, model: Any, fold: int, path: Path) -> None:
        self.write(model, self.labeled, np.flatnonzero(self.folds.fold == fold), path)

    def holdout(self, model: Any, path: Path) -> None:
        self.write(model, self.labeled, np.flatnonzero(self.folds.fold == HOLDOUT), path)

    def write(self, model: Any, videos: Videos, rows: np.ndarray, path: Path) -> None:
        """Predictions of the videos at `rows` (fp32); a file that is already there was finished by an earlier run."""
        if path.is_file():
            return
        blocks = [np.zeros((0, model.n_classes), dtype=np.float32)]
        for block in iterate_logits(model, videos.dataset(rows, self.inputs), self.batch_size, self.device):
            blocks.append(block)
            self.pause()
        write_predictions(path, videos.ids(rows), np.concatenate(blocks))


def finish_fold(source: Path, target: Path, fold: int, last: int, predictor: Predictor) -> None:
    """Average the checkpoints of `source` into `target` and predict with the result; files that are there are kept."""
    if not (target / "config.json").is_file():  # written last
        target.mkdir(exist_ok=True)
        shutil.copyfile(source / "curves.csv", target / "curves.csv")
        save_model(target, averaged_model(source, last))
    model = load_model(target)
    predictor.validation(model, fold, target / "validation.parquet")
    predictor.holdout(model, target / "holdout.parquet")
    predictor.write(model, predictor.test, np.arange(len(predictor.test)), target / "test.parquet")
    predictor.validation(load_model(source, kept_checkpoints(source)[-1]), fold, target / LAST)


def publish_folds(folders: Mapping[int, Path], target: Path) -> None:
    """The folds' files into `target`, and beside them all validation rows and the mean logits of holdout and test."""
    for fold, folder in folders.items():
        (target / str(fold)).mkdir()
        for name in PUBLISHED:
            link_or_copy(folder / name, target / str(fold) / name)
    validation = [read_predictions(folder / "validation.parquet") for folder in folders.values()]
    ids = [video for part, _ in validation for video in part]
    write_predictions(target / "out_of_fold.parquet", ids, np.concatenate([logits for _, logits in validation]))
    for name in ("holdout.parquet", "test.parquet"):
        parts = [read_predictions(folder / name) for folder in folders.values()]
        write_predictions(target / name, parts[0][0], mean_logits([logits for _, logits in parts]))


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
