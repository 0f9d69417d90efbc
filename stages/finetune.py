"""One student on the true labels outside its fold: python -m stages.finetune --arch single_stream --fold 0"""

import argparse
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from framefold.data.videos import CATEGORIES, FOLDS, Videos, open_labeled, open_videos, store_paths
from framefold.errors import command
from framefold.launch import on_several_processes
from framefold.models.registry import architecture, build_model, load_weights_into, save_config
from framefold.models.weights import save_weights
from framefold.params.base import load, load_value
from framefold.params.finetune import FinetuneParams
from framefold.params.models import StudentParams
from framefold.runtime import is_main_process, load_runtime, seed_everything
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import write_folder_aside, write_json
from framefold.training.classifiers import FoldData, kept_epochs, open_fold, train_classifier
from framefold.training.curves import write_curves
from framefold.training.loop import TrainResult

log = logging.getLogger(__name__)


@command
@on_several_processes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--fold", type=int, required=True)
    arguments = parser.parse_args()
    arch, fold = arguments.arch, arguments.fold
    params, student = load(FinetuneParams), load(StudentParams)
    size = load(architecture(arch).Params, f"models.{arch}")
    seed, precision = load_value("seed"), load_value("precision")
    teacher = fold % load_value("teacher.n_folds")  # the one that never saw this fold
    source = Path("models/pretrain") / arch / (str(teacher) if load_value("pretrain.per_fold") else "all")
    load_runtime().prepare_cpu()

    stamp = {
        "params": [group.model_dump(mode="json") for group in (params, student, size)],
        "run": [seed, precision, fold],
    }
    inputs = [FOLDS, CATEGORIES, source, *store_paths("labeled", student.encoder)]
    with Scratch(f"finetune@{arch}-{fold}", stage_fingerprint(stamp, inputs, [f"framefold.models.{arch}"])) as scratch:
        videos = open_videos("labeled", student.encoder)
        labeled = open_labeled(videos)
        data = open_fold(videos, labeled, labeled.fold == fold, student.inputs, params.batch_size)
        seed_everything(seed)
        result = train_classifier(
            warm_student(arch, student, size, source, videos, len(data.categories)),
            data,
            params,
            seed=seed,
            precision=precision,
            scratch=scratch,
            after_epoch=judge(data, scratch),
        )
        if is_main_process():
            publish(Path("models/finetune") / arch / str(fold), result, params, data, scratch)
        scratch.finish()


def warm_student(arch: str, student: StudentParams, size: Any, source: Path, videos: Videos, n_classes: int) -> Any:
    """The student with the weights of its pretraining, backbone and classification head."""
    model = build_model(arch, student.text, size, videos.special.size, videos.features.dim, n_classes)
    load_weights_into(model, source)
    return model


def judge(data: FoldData, scratch: Scratch) -> Callable[[int, nn.Module, nn.Module], dict[str, float]]:
    """After an epoch: keep its EMA weights, score them and the raw ones on the fold."""
    device = load_runtime().torch_device()

    def after_epoch(epoch: int, raw: nn.Module, ema: nn.Module) -> dict[str, float]:
        scores = {"raw": data.score(data.logits(raw, device)), "ema": data.score(data.logits(ema, device))}
        with scratch.sealed(checkpoint(epoch)) as path:
            save_weights(path, ema)
        log.info(f"epoch {epoch + 1}: fold score {scores['ema']:.4f} (EMA), {scores['raw']:.4f} (raw weights)")
        return scores

    return after_epoch


def publish(target: Path, result: TrainResult, params: FinetuneParams, data: FoldData, scratch: Scratch) -> None:
    kept = kept_epochs([report["ema"] for report in result.epochs], params.checkpoints)
    report: dict[str, Any] = {"epochs": result.epochs, "kept": kept} | result.epochs[-1]
    report |= {"training_videos": len(data.training), "validation_videos": len(data.validation)}
    with write_folder_aside(target) as aside:
        for epoch in kept:
            shutil.copyfile(scratch.folder / checkpoint(epoch), aside / checkpoint(epoch))
        save_config(aside, result.ema)
        write_curves(aside / "curves.csv", result.history)
        write_json(aside / "metrics.json", report)
        scratch.guard()


def checkpoint(epoch: int) -> str:
    return f"epoch-{epoch}.safetensors"


if __name__ == "__main__":
    main()
