"""One teacher on the labelled videos outside its fold: python -m stages.train_teacher --fold 0"""

import argparse
import logging
from pathlib import Path
from typing import Any

from framefold.data.folds import teacher_fold, without_holdout
from framefold.data.origins import ORIGIN, check_trained_folds, origin_of
from framefold.data.pseudo_labels import TEACHERS
from framefold.data.samples import samples_path
from framefold.data.topics import UNLABELED, pool_rows
from framefold.data.videos import CATEGORIES, FOLDS, Videos, open_labeled, open_videos, store_paths
from framefold.errors import UserError, command
from framefold.inference.predictions import write_predictions
from framefold.launch import on_several_processes
from framefold.models.registry import build_model, save_model
from framefold.params.base import PARAMS_FILE, load, load_value
from framefold.params.supervised import dropout_problem
from framefold.params.teacher import TeacherParams
from framefold.runtime import is_main_process, load_runtime, seed_everything
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import write_folder_aside, write_json
from framefold.training.classifiers import FoldData, open_fold, train_classifier
from framefold.training.curves import write_curves
from framefold.training.loop import TrainResult
from framefold.training.text_start import start_from_topics

ARCH = "single_stream"
log = logging.getLogger(__name__)


@command
@on_several_processes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fold", type=int, required=True)
    fold = parser.parse_args().fold
    params, seed, precision = load(TeacherParams), load_value("seed"), load_value("precision")
    leaky = load_value("pseudo_label.leaky")
    if problem := dropout_problem("teacher.training", params.training, "teacher.model", params.model, params.text):
        raise UserError(f"{PARAMS_FILE}: {problem}")
    load_runtime().prepare_cpu()

    stamp = {"teacher": params.model_dump(mode="json", exclude={"folds"}), "run": [seed, precision, fold, leaky]}
    inputs = [
        FOLDS,
        CATEGORIES,
        UNLABELED,
        *map(samples_path, ("unlabeled", "test")),
        *store_paths("labeled", params.encoder),
    ]
    with Scratch(f"train_teacher@{fold}", stage_fingerprint(stamp, inputs, [f"framefold.models.{ARCH}"])) as scratch:
        videos = open_videos("labeled", params.encoder)
        labeled = open_labeled(videos)
        own = teacher_fold(labeled.fold, params.n_folds) == fold
        shown = without_holdout(labeled) if leaky else labeled
        data = open_fold(videos, shown, own, params.inputs, params.training.batch_size)
        origin = origin_of(labeled, data.training.rows, params.n_folds)
        if not leaky:
            check_trained_folds({fold: origin["trained_folds"]}, params.n_folds, TEACHERS)
        seed_everything(seed)
        shape = videos.special.size, videos.features.dim, len(data.categories)
        model = build_model(ARCH, params.text, params.model, *shape)
        start_from_topics(model, params.text, pool_rows(labeled), seed)
        result = train_classifier(
            model,
            data,
            params.training,
            seed=seed,
            precision=precision,
            scratch=scratch,
        )
        if is_main_process():
            publish(TEACHERS / str(fold), result, data, videos, origin, scratch)
        scratch.finish()


def publish(
    target: Path, result: TrainResult, data: FoldData, videos: Videos, origin: dict[str, Any], scratch: Scratch
) -> None:
    device = load_runtime().torch_device()
    logits, raw = data.logits(result.ema, device), data.logits(result.model, device)
    report = {"ema": data.score(logits), "raw": data.score(raw)}
    log.info(f"{scratch.item}: fold score {report['ema']:.4f} (EMA), {report['raw']:.4f} (raw weights)")
    with write_folder_aside(target) as aside:
        save_model(aside, result.ema)
        write_json(aside / ORIGIN, origin)
        write_predictions(aside / "out_of_fold.parquet", videos.ids(data.validation.rows), logits)
        write_curves(aside / "curves.csv", result.history)
        sizes = {"training_videos": len(data.training), "validation_videos": len(data.validation)}
        write_json(aside / "metrics.json", report | sizes)
        scratch.guard()


if __name__ == "__main__":
    main()
