"""One student on the true labels outside its fold: python -m stages.finetune --arch single_stream --fold 0"""

import argparse
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from framefold.data.folds import REFIT, Folds
from framefold.data.manifest import NAME
from framefold.data.origins import ORIGIN, check_given_labels, origin_of
from framefold.data.pseudo_labels import origin_of_labels, read_teachers, teacher_of
from framefold.data.videos import CATEGORIES, FOLDS, Videos, open_labeled, open_videos, store_paths
from framefold.errors import UserError, command
from framefold.launch import on_several_processes
from framefold.models.registry import architecture, build_model, load_weights_into, save_config
from framefold.models.weights import save_weights
from framefold.params.base import PARAMS_FILE, load, load_value
from framefold.params.finetune import CheckpointParams, FinetuneParams, own_towers_problem
from framefold.params.models import StudentParams
from framefold.params.supervised import dropout_problem
from framefold.rounds import Round, add_round
from framefold.runtime import is_main_process, load_runtime, seed_everything
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import read_json, write_folder_aside, write_json
from framefold.training.checkpoint_choice import fold_halves, half_scores, top_gains
from framefold.training.classifiers import FoldData, kept_epochs, open_all, open_fold, train_classifier
from framefold.training.curves import write_curves
from framefold.training.loop import TrainResult
from framefold.training.pool import open_labelled_pool
from framefold.training.pseudo_phase import PHASE, learn_pseudo_labels

log = logging.getLogger(__name__)


@command
@on_several_processes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--fold", type=int, required=True)
    add_round(parser)
    arguments = parser.parse_args()
    finetune("finetune", arguments.arch, arguments.fold, arguments.round_)


def finetune(stage: str, arch: str, fold: int | str, round_: Round) -> None:
    """The student of a fold; with REFIT the one of all labelled videos, by the same recipe without validation."""
    params, student = load(FinetuneParams), load(StudentParams)
    refuse_contradictions(params, student, arch, round_)
    seed, precision = load_value("seed"), load_value("precision")
    teacher = labels_by(fold, round_) if load_value("pretrain.per_fold") else None  # None: all together
    source = round_.models / "pretrain" / arch / ("all" if teacher is None else str(teacher))
    root, encoder = Path(load_value("data.root")), Path("models/clip") / student.encoder
    load_runtime().prepare_cpu()

    with Scratch(round_.item(stage, arch, fold), made_from(arch, fold, round_, source)) as scratch:
        featured = open_videos("labeled", student.encoder)
        videos = with_own_pixels(featured, params, root, encoder) if params.vision.lr else featured
        labeled = open_labeled(videos)
        leaky = check_given_labels(read_json(source / ORIGIN), labeled, teacher, fold, source)
        if params.pseudo.epochs:
            given = origin_of_labels(round_.pseudo, teacher)
            leaky |= check_given_labels(given, labeled, teacher, fold, round_.pseudo)
        data = open_data(videos, labeled, fold, student, params)
        params = params.model_copy(update={"checkpoints": choice_of(params.checkpoints, data, round_)})
        halves = fold_halves(data, labeled) if params.checkpoints.select == "top" else None
        seed_everything(seed)
        model = warm_student(arch, student, source, videos, len(data.categories))
        if params.pseudo.epochs:
            pool = open_labelled_pool(student, round_.pseudo, teacher, params.pseudo.labels)
            judged = open_data(featured, labeled, fold, student, params)
            learn_pseudo_labels(model, pool, judged, params, seed=seed, precision=precision, scratch=scratch)
        if params.vision.lr:  # after the first phase, which reads features
            give_tower(model, encoder)
        judgement = judge(data, halves, scratch)
        result = train_classifier(
            model, data, params, seed=seed, precision=precision, scratch=scratch, after_epoch=judgement
        )
        if is_main_process():
            origin = origin_of(labeled, data.training.rows, labeled.n_folds, leaky)
            publish(round_.models / "finetune" / arch / str(fold), result, params, data, origin, scratch)
        scratch.finish()


def refuse_contradictions(params: FinetuneParams, student: StudentParams, arch: str, round_: Round) -> None:
    """UserError for what `framefold repro` tells before anything runs, and plain `dvc repro` does not."""
    model = f"models.{arch}"
    head = load(architecture(arch).Params, f"models.{arch}")
    dropout = dropout_problem("finetune", params, model, head, student.text)
    if problem := dropout or own_towers_problem(params, labels_later=round_.name is not None):
        raise UserError(f"{PARAMS_FILE}: {problem}")


def made_from(arch: str, fold: int | str, round_: Round, source: Path) -> dict[str, str]:
    """Fingerprint of all that a student is made from; source: its pretraining."""
    params, student = load(FinetuneParams), load(StudentParams)
    groups = (params, student, load(architecture(arch).Params, f"models.{arch}"))
    stamp = {
        "params": [group.model_dump(mode="json") for group in groups],
        "run": [load_value("seed"), load_value("precision"), fold],
    }
    inputs = [FOLDS, CATEGORIES, source, *store_paths("labeled", student.encoder)]
    inputs += [round_.pseudo, *store_paths("unlabeled", student.encoder)] if params.pseudo.epochs else []
    if params.vision.lr:
        inputs += [Path(load_value("data.root")) / NAME, Path("models/clip") / student.encoder]
    return stage_fingerprint(stamp, inputs, [f"framefold.models.{arch}"])


def labels_by(fold: int | str, round_: Round) -> int:
    """The teacher that never saw a student's fold.

    All labelled videos have no such teacher, nor a fold that the others' labels could leak into: any will do.
    """
    return min(read_teachers(round_.pseudo)) if fold == REFIT else teacher_of(int(fold), round_.pseudo)


def open_data(
    videos: Videos, labeled: Folds, fold: int | str, student: StudentParams, params: FinetuneParams
) -> FoldData:
    if fold == REFIT:
        return open_all(videos, labeled, student.inputs, params.batch_size)
    return open_fold(videos, labeled, labeled.fold == fold, student.inputs, params.batch_size)


def choice_of(params: CheckpointParams, data: FoldData, round_: Round) -> CheckpointParams:
    """Nothing is chosen by fold score where there is no fold, nor for students that label in a later round, whose
    students are judged on that very fold."""
    by_fold = len(data.validation) and round_.name is None
    return params if by_fold else params.model_copy(update={"select": "last"})


def with_own_pixels(videos: Videos, params: FinetuneParams, root: Path, encoder: Path) -> Videos:
    """The labelled videos with pixels in place of features, for a student that trains its tower."""
    from framefold.data.images import Preprocess, read_encoder_config
    from framefold.data.pixels import with_pixels

    content = read_encoder_config(encoder)["preprocess"]
    if content is None:
        raise UserError(f"{encoder}: the data brings features, there is no tower; set finetune.vision.lr to 0")
    return with_pixels(videos, root, "labeled", Preprocess.from_json(content), params.vision.min_crop)


def give_tower(model: Any, encoder: Path) -> None:
    """A copy of the students' encoder, to be trained. Imports open_clip or timm, which takes seconds."""
    from framefold.models.end_to_end import attach_tower
    from framefold.models.vision import load_encoder

    attach_tower(model, load_encoder(encoder))


def warm_student(arch: str, student: StudentParams, source: Path, videos: Videos, n_classes: int) -> Any:
    """The student with the weights of its pretraining, backbone and classification head."""
    size = load(architecture(arch).Params, f"models.{arch}")
    model = build_model(arch, student.text, size, videos.special.size, videos.features.dim, n_classes)
    load_weights_into(model, source)
    return model


def judge(
    data: FoldData, halves: np.ndarray | None, scratch: Scratch
) -> Callable[[int, nn.Module, nn.Module], dict[str, Any]]:
    """After an epoch: keep its EMA weights, score them and the raw ones on the fold, where there is one.

    `halves` (V,) of the fold: both are scored, too, to tell later how optimistic it is to choose by fold score.
    """
    device = load_runtime().torch_device()

    def after_epoch(epoch: int, raw: nn.Module, ema: nn.Module) -> dict[str, Any]:
        with scratch.sealed(checkpoint(epoch)) as path:
            save_weights(path, ema)
        if not len(data.validation):
            return {}
        logits = data.logits(ema, device)
        scores: dict[str, Any] = {"raw": data.score(data.logits(raw, device)), "ema": data.score(logits)}
        if halves is not None:
            scores["ema_halves"] = half_scores(data, logits, halves)
        log.info(f"epoch {epoch + 1}: fold score {scores['ema']:.4f} (EMA), {scores['raw']:.4f} (raw weights)")
        return scores

    return after_epoch


def publish(
    target: Path, result: TrainResult, params: FinetuneParams, data: FoldData, origin: dict[str, Any], scratch: Scratch
) -> None:
    kept = kept_epochs([report.get("ema", 0.0) for report in result.epochs], params.checkpoints)
    report: dict[str, Any] = {"epochs": result.epochs, "kept": kept} | result.epochs[-1]
    report |= {"training_videos": len(data.training), "validation_videos": len(data.validation)}
    if "ema_halves" in result.epochs[-1]:
        report["selection"] = top_gains(result.epochs, params.checkpoints)
    with write_folder_aside(target) as aside:
        for epoch in kept:
            shutil.copyfile(scratch.folder / checkpoint(epoch), aside / checkpoint(epoch))
        save_config(aside, result.ema)
        write_curves(aside / "curves.csv", result.history)
        write_json(aside / ORIGIN, origin)
        if params.pseudo.epochs:
            report["pseudo"] = read_json(scratch.folder / PHASE / "metrics.json")
            shutil.copyfile(scratch.folder / PHASE / "curves.csv", aside / "pseudo_curves.csv")
        write_json(aside / "metrics.json", report)
        scratch.guard()


def checkpoint(epoch: int) -> str:
    return f"epoch-{epoch}.safetensors"


if __name__ == "__main__":
    main()
