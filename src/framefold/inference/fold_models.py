"""One SWA model per validation fold, its predictions, and what the folds' models say together."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from framefold.data.folds import Folds
from framefold.data.videos import HOLDOUT, Videos
from framefold.inference.blocks import BlockFolder
from framefold.inference.predict import block_logits
from framefold.inference.predictions import mean_logits, read_predictions, write_predictions
from framefold.inference.processes import Processes, SharedProgress
from framefold.inference.weight_averaging import averaged_model, kept_checkpoints
from framefold.models.registry import load_model, save_model
from framefold.params.models import InputParams
from framefold.seals import is_whole, sealed
from framefold.storage import link_or_copy, read_json

LAST = "last_checkpoint.parquet"  # of the last EMA checkpoint alone: compared with the average, then dropped
PREDICTED = ("validation.parquet", "holdout.parquet", "test.parquet")
WEIGHTS = "model.safetensors"
PUBLISHED = (WEIGHTS, "config.json", "curves.csv", *PREDICTED)


def average_folds(sources: Mapping[int, Path], folders: Mapping[int, Path], last: int) -> None:
    """Average the last checkpoints of every fold into its folder; an average that is there and whole is kept."""
    for fold, source in sources.items():
        target = folders[fold]
        if not is_whole(target / WEIGHTS):
            target.mkdir(exist_ok=True)
            shutil.copyfile(source / "curves.csv", target / "curves.csv")
            with sealed(target / WEIGHTS):
                save_model(target, averaged_model(source, last))


@dataclass(frozen=True)
class Part:
    """Predictions to make: one file of a fold, of `videos` at `rows`, by the model in `model`."""

    fold: int
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

    def parts(self, fold: int, source: Path, target: Path) -> Iterator[Part]:
        """All predictions of a fold: checkpoints in `source`, the average in `target`."""
        validation, holdout = (np.flatnonzero(self.folds.fold == value) for value in (fold, HOLDOUT))
        average, last = (target, WEIGHTS), (source, kept_checkpoints(source)[-1])
        yield self.part(fold, "validation.parquet", average, self.labeled, validation)
        yield self.part(fold, "holdout.parquet", average, self.labeled, holdout)
        yield self.part(fold, "test.parquet", average, self.test, np.arange(len(self.test)))
        yield self.part(fold, LAST, last, self.labeled, validation)

    def part(self, fold: int, name: str, model: tuple[Path, str], videos: Videos, rows: np.ndarray) -> Part:
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
                model = load_model(*part.model).to(self.device)
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
