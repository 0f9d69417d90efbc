"""One SWA model per validation fold, its predictions, and what the folds' models say together."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from framefold.data.batches import EpochBatches
from framefold.data.folds import HOLDOUT, REFIT, Folds
from framefold.data.origins import ORIGIN
from framefold.data.videos import Videos, fold_rows, read_categories
from framefold.errors import UserError
from framefold.inference.batch_statistics import recompute_statistics
from framefold.inference.blocks import BlockFolder
from framefold.inference.greedy_soup import FoldVideos, choose_soup, soup_labels
from framefold.inference.predict import block_logits
from framefold.inference.predictions import mean_logits, read_predictions, write_predictions
from framefold.inference.processes import Processes, SharedProgress
from framefold.inference.weight_averaging import averaged_model, kept_checkpoints
from framefold.models.backbone import Batch
from framefold.models.end_to_end import load_student
from framefold.models.normalization import has_batch_statistics
from framefold.models.registry import save_model
from framefold.params.models import InputParams
from framefold.seals import is_whole, sealed_folder
from framefold.storage import link_or_copy, read_json, write_json

LAST = "last_checkpoint.parquet"  # of the last EMA checkpoint alone: compared with the average, then dropped
PREDICTED = ("validation.parquet", "holdout.parquet", "test.parquet")
WEIGHTS = "model.safetensors"
COPIED = ("curves.csv", ORIGIN)
AVERAGE = "model"  # sub-folder of a fold's: the average, beside its predictions
MODEL = (WEIGHTS, "config.json", *COPIED)
SELECTION = "selection.json"  # what choosing checkpoints on the fold gains; empty where nothing was chosen

Fold = int | str  # or REFIT
Choose = Callable[[Fold, Path], tuple[Sequence[str], Mapping[str, float]]]  # names of checkpoints, what choosing gains


def average_folds(
    sources: Mapping[Fold, Path],
    folders: Mapping[Fold, Path],
    choose: Choose,
    average: Callable[[Fold, Path, Sequence[str]], nn.Module],
) -> None:
    """Average the chosen checkpoints of every fold into `AVERAGE` of its folder; one that is there and whole is kept.

    average: `Predictor.average`.
    """
    for fold, source in sources.items():
        target = folders[fold] / AVERAGE
        if not is_whole(target):
            folders[fold].mkdir(exist_ok=True)
            with sealed_folder(target) as aside:
                for name in COPIED:
                    shutil.copyfile(source / name, aside / name)
                names, gains = choose(fold, source)
                write_json(aside / SELECTION, gains)
                save_model(aside, average(fold, source, names))


@dataclass(frozen=True)
class Part:
    """Predictions to make: one file of a fold, of `videos` at `rows`, by the model in `model`."""

    fold: Fold
    name: str
    model: tuple[Path, str]  # folder, file of weights
    videos: Videos
    rows: np.ndarray
    blocks: BlockFolder

    def write(self, folder: Path) -> None:
        """The file, put together from its blocks."""
        n_classes = read_json(self.model[0] / "config.json")["n_classes"]
        nothing = np.zeros((0, n_classes), dtype=np.float32)
        write_predictions(folder / self.name, self.videos.ids(self.rows), np.concatenate([nothing, *self.blocks]))


@dataclass(frozen=True)
class Predictor:
    """Predicts labelled and test videos with the folds' models (fp32); `pause` runs between blocks, may raise to stop.

    A block that is in `blocks` was finished by an earlier run.
    """

    labeled: Videos
    test: Videos
    folds: Folds
    inputs: InputParams
    batch_size: int
    device: torch.device
    pause: Callable[[], None]
    blocks: Path

    def average(self, fold: Fold, source: Path, names: Sequence[str]) -> nn.Module:
        """The mean of the named checkpoints in `source`, ready to predict.

        Statistics of batch normalisation are those of the mean itself, on the videos that trained the fold.
        """
        model = averaged_model(source, names)
        if has_batch_statistics(model):
            model.to(self.device)
            recompute_statistics(model, lambda: self.training_batches(fold))
        return model

    def training_batches(self, fold: Fold) -> Iterator[Batch]:
        """The videos that train a fold, on the device, with frames as in evaluation."""
        rows = np.arange(len(self.folds)) if fold == REFIT else fold_rows(self.folds, self.folds.fold == fold)[0]
        dataset = self.labeled.dataset(rows, self.inputs)
        batches = EpochBatches(dataset, self.batch_size, seed=0, epoch=0, shuffle=False)
        for batch in (batches[number] for number in range(len(batches))):
            yield {name: tensor.to(self.device) for name, tensor in batch.items()}
            self.pause()

    def parts(self, fold: int, source: Path, target: Path) -> Iterator[Part]:
        """All predictions of a fold: checkpoints in `source`, the average in `target`."""
        validation, holdout = (np.flatnonzero(self.folds.fold == value) for value in (fold, HOLDOUT))
        average, last = (target / AVERAGE, WEIGHTS), (source, kept_checkpoints(source)[-1])
        yield self.part(fold, "validation.parquet", average, self.labeled, validation)
        yield self.part(fold, "holdout.parquet", average, self.labeled, holdout)
        yield self.part(fold, "test.parquet", average, self.test, np.arange(len(self.test)))
        yield self.part(fold, LAST, last, self.labeled, validation)

    def refit_part(self, target: Path) -> Part:
        """Of a model that was trained on all labelled videos: the test videos, which alone it has not seen."""
        return self.part(REFIT, "test.parquet", (target / AVERAGE, WEIGHTS), self.test, np.arange(len(self.test)))

    def greedy_soup(self, fold: Fold, source: Path, last: int) -> tuple[Sequence[str], Mapping[str, float]]:
        """Of the `last` checkpoints in `source` those chosen on the fold, and what that gains; REFIT has no fold."""
        names = kept_checkpoints(source)[-last:]
        if fold == REFIT:
            return names, {}
        rows = np.flatnonzero(self.folds.fold == fold)
        dataset = self.labeled.dataset(rows, self.inputs)
        videos = FoldVideos(self.folds.label[rows], self.folds.group[rows], read_categories())
        mean = partial(self.average, fold, source)
        predict = soup_labels(mean, dataset, self.batch_size, self.device, self.pause)
        return choose_soup(names, predict, videos)

    def part(self, fold: Fold, name: str, model: tuple[Path, str], videos: Videos, rows: np.ndarray) -> Part:
        blocks = BlockFolder(self.blocks / str(fold) / Path(name).stem, len(rows))
        return Part(fold, name, model, videos, rows, blocks)

    def predict(self, parts: Sequence[Part], processes: Processes) -> None:
        """Fill the blocks of all parts. Many processes share them; all are there when this returns in the main one."""
        missing = processes.main_first("missing", lambda: missing_blocks(parts), self.pause)
        total = sum(len(part.rows) for part in parts)
        waiting = sum(len(parts[place].blocks.rows_of(number)) for place, number in missing)
        progress = SharedProgress(processes, processes.item, total, "videos", total - waiting)

        def pause() -> None:
            progress.add(0)
            self.pause()

        current: Part | None = None
        for place, number in processes.deal("blocks", missing):
            part = parts[place]
            if current is None or part.model != current.model:
                model = load_student(*part.model).to(self.device)
            if part is not current:
                current, dataset = part, part.videos.dataset(part.rows, self.inputs)
            rows = part.blocks.rows_of(number)
            (logits,) = block_logits([model], dataset, rows, self.batch_size, self.device, "fp32")
            part.blocks.write(number, logits)
            progress.add(len(rows))
            self.pause()
        processes.join("predicted", pause)
        progress.close()


def missing_blocks(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """(place in `parts`, block), by model: a process that takes them in turn seldom loads another."""
    return [(place, number) for place, part in enumerate(parts) for number in part.blocks.open()]


def check_kept(source: Path, last: int) -> None:
    """UserError: fewer checkpoints are kept than are to be averaged, though there were more epochs; or fewer are to be
    averaged than the best that are kept, which are not ordered by time."""
    report, kept = read_json(source / "metrics.json"), len(kept_checkpoints(source))
    if kept < min(last, len(report["epochs"])):
        raise UserError(
            f"average_weights.last is {last}, but {source} keeps {kept}; "
            f"set finetune.checkpoints.keep to {last} at least, or average fewer"
        )
    if "selection" in report and last < kept:
        raise UserError(
            f"average_weights.last is {last} of the {kept} best checkpoints that {source} keeps; "
            "set it and finetune.checkpoints.keep to the same number"
        )


def last_checkpoints(fold: Fold, source: Path, last: int) -> tuple[Sequence[str], Mapping[str, float]]:
    return kept_checkpoints(source)[-last:], {}


def publish_model(folder: Path, target: Path, predictions: Sequence[str]) -> None:
    target.mkdir()
    for source, names in ((folder / AVERAGE, MODEL), (folder, predictions)):
        for name in names:
            link_or_copy(source / name, target / name)


def publish_folds(folders: Mapping[int, Path], target: Path) -> None:
    """The folds' files into `target`, and beside them all validation rows and the mean logits of holdout and test."""
    for fold, folder in folders.items():
        publish_model(folder, target / str(fold), PREDICTED)
    validation = [read_predictions(folder / "validation.parquet") for folder in folders.values()]
    ids = [video for part, _ in validation for video in part]
    write_predictions(target / "out_of_fold.parquet", ids, np.concatenate([logits for _, logits in validation]))
    for name in ("holdout.parquet", "test.parquet"):
        parts = [read_predictions(folder / name) for folder in folders.values()]
        write_predictions(target / name, parts[0][0], mean_logits([logits for _, logits in parts]))
