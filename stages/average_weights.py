"""Averaged models of one architecture and their predictions: python -m stages.average_weights --arch single_stream"""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any

from framefold.data.folds import Folds
from framefold.data.manifest import NAME
from framefold.data.origins import check_trained_folds, read_origins
from framefold.data.videos import Videos, open_labeled
from framefold.errors import command
from framefold.evaluation.metrics import official_scores
from framefold.evaluation.splits import read_labeled
from framefold.inference.blocks import shared_folder
from framefold.inference.fold_models import (
    AVERAGE,
    LAST,
    SELECTION,
    Fold,
    Predictor,
    average_folds,
    check_kept,
    last_checkpoints,
    publish_folds,
    publish_model,
)
from framefold.inference.own_towers import open_videos_for, own_preprocess
from framefold.inference.predictions import read_aligned
from framefold.inference.processes import Processes
from framefold.launch import on_several_processes
from framefold.params.average_weights import AverageWeightsParams
from framefold.params.base import load, load_value
from framefold.params.models import StudentParams
from framefold.rounds import add_round
from framefold.runtime import load_runtime
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import drop_unlisted, read_json, write_folder_aside, write_json

log = logging.getLogger(__name__)


@command
@on_several_processes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", required=True)
    add_round(parser)
    arguments = parser.parse_args()
    arch, round_ = arguments.arch, arguments.round_
    params, student, folds = load(AverageWeightsParams), load(StudentParams), load_value("folds")
    refits = load_value("full_data") if round_.name is None else []  # no fold is left in which they could label others
    source, target = (round_.models / step / arch for step in ("finetune", "swa"))
    processes = Processes(round_.item("average_weights", arch))
    processes.main_first("tidy", lambda: drop_unlisted(source, [*folds, *refits]))

    stamp = {"average_weights": params.model_dump(), "student": student.model_dump(), "folds": [*folds, *refits]}
    inputs = [source, Path("data/folds.parquet"), Path("models/tokenizer")]
    inputs += [Path("data/tokens") / f"{split}.arrow" for split in ("labeled", "test")]
    inputs += [Path("data/features") / student.encoder / split for split in ("labeled", "test")]
    root, example = Path(load_value("data.root")), source / str(folds[0])
    inputs += [root / NAME] if own_preprocess(example) else []
    with Scratch(processes.item, stage_fingerprint(stamp, inputs, [f"framefold.models.{arch}"])) as scratch:
        blocks = shared_folder(scratch, processes)
        names: list[Fold] = [*folds, *refits]
        sources, folders = ({name: folder / str(name) for name in names} for folder in (source, scratch.folder))
        labeled, test = (open_videos_for(example, split, student.encoder, root) for split in ("labeled", "test"))
        for folder in sources.values():
            check_kept(folder, params.last)
        check_students({fold: sources[fold] for fold in folds}, open_labeled(labeled), source)
        predictor = open_predictor(labeled, test, student, params.batch_size, scratch, blocks)
        # students that label in a later round: its own are judged on the fold that would choose
        greedy = params.method == "greedy" and round_.name is None
        choose = partial(predictor.greedy_soup if greedy else last_checkpoints, last=params.last)
        average = partial(average_folds, sources, folders, choose, predictor.average)
        processes.main_first("averages", average, scratch.guard)
        parts = [part for fold in folds for part in predictor.parts(fold, sources[fold], folders[fold])]
        parts += [predictor.refit_part(folders[name]) for name in refits]
        predictor.predict(parts, processes)
        if not processes.main:
            return
        for part in parts:
            part.write(folders[part.fold])
        publish(arch, sources, folders, refits, target, scratch)
        scratch.finish()


def check_students(sources: dict[int, Path], labeled: Folds, folder: Path) -> None:
    """UserError for a student that saw the fold or the holdout on which it is to be judged; what it was pretrained on
    may be leaky, which then stands beside its scores."""
    trained = read_origins({fold: [source] for fold, source in sources.items()}, labeled, labeled.n_folds, leaky=True)
    check_trained_folds(trained, labeled.n_folds, folder)


def publish(
    arch: str,
    sources: dict[Fold, Path],
    folders: dict[Fold, Path],
    refits: list[str],
    target: Path,
    scratch: Scratch,
) -> None:
    own = {int(fold): folder for fold, folder in folders.items() if fold not in refits}
    report = {str(fold): describe_fold(fold, sources[fold], folder) for fold, folder in own.items()}
    with write_folder_aside(target) as aside:
        publish_folds(own, aside)
        for name in refits:
            publish_model(folders[name], aside / name, ["test.parquet"])
        write_json(aside / "metrics.json", {"folds": report})
        scratch.guard()
    for fold, scores in report.items():
        log.info(f"average_weights {arch} fold {fold}: {scores['swa']:.4f} (last checkpoint {scores['last']:.4f})")


def open_predictor(
    labeled: Videos, test: Videos, student: StudentParams, batch_size: int, scratch: Scratch, blocks: Path
) -> Predictor:
    runtime, folds = load_runtime(), open_labeled(labeled)
    runtime.prepare_cpu()
    return Predictor(labeled, test, folds, student.inputs, batch_size, runtime.torch_device(), scratch.guard, blocks)


def describe_fold(fold: int, source: Path, predicted: Path) -> dict[str, Any]:
    """Scores on the validation fold: the average, the last checkpoint alone, and finetune's own account of the fold."""
    labeled = read_labeled()
    rows = labeled.out_of_fold_rows([fold])

    def score(name: str) -> float:
        logits = read_aligned(predicted / name, labeled.ids_of(rows))
        return official_scores(labeled.labels[rows], logits.argmax(axis=1), labeled.categories)["score"]

    scores = {"swa": score("validation.parquet"), "last": score(LAST)}
    chosen = read_json(predicted / AVERAGE / SELECTION)
    return scores | ({"selection": chosen} if chosen else {}) | {"finetune": read_json(source / "metrics.json")}


if __name__ == "__main__":
    main()
