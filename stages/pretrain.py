"""A student on the unlabelled pool: python -m stages.pretrain --arch single_stream"""

import argparse
import logging
import shutil
from pathlib import Path
from typing import Any

from framefold.data.batches import EpochBatches
from framefold.data.origins import ORIGIN
from framefold.data.pseudo_labels import origin_of_labels, read_teachers
from framefold.data.videos import store_paths
from framefold.errors import command
from framefold.inference.processes import Processes
from framefold.launch import on_several_processes
from framefold.models.registry import architecture, build_with_mlm_head, save_model
from framefold.params.base import load, load_value
from framefold.params.models import StudentParams
from framefold.params.pretrain import PretrainParams
from framefold.params.training import TrainingParams
from framefold.rounds import add_round
from framefold.runtime import is_main_process, load_runtime, seed_everything
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import write_folder_aside, write_json
from framefold.training.curves import write_curves
from framefold.training.held_out import measure
from framefold.training.loop import TrainResult, train
from framefold.training.pool import Pool, open_pool
from framefold.training.pretraining import PretrainingModel
from framefold.training.tasks import PretrainingTask
from framefold.training.text_start import start_from_topics
from framefold.training.views import MismatchedVideos, masking_of, training_views

log = logging.getLogger(__name__)


@command
@on_several_processes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", required=True)
    add_round(parser)
    arguments = parser.parse_args()
    arch, round_ = arguments.arch, arguments.round_
    params, student = load(PretrainParams).only(arch), load(StudentParams)
    size = load(architecture(arch).Params, f"models.{arch}")
    seed, precision = load_value("seed"), load_value("precision")
    variants = {str(teacher): teacher for teacher in read_teachers(round_.pseudo)} if params.per_fold else {"all": None}
    load_runtime().prepare_cpu()

    stamp = {"params": [group.model_dump(mode="json") for group in (params, student, size)], "run": [seed, precision]}
    stamp["variants"] = list(variants)
    inputs = [round_.pseudo, *store_paths("unlabeled", student.encoder)]
    fingerprint = stage_fingerprint(stamp, inputs, [f"framefold.models.{arch}"])
    with Scratch(round_.item("pretrain", arch), fingerprint) as scratch:
        # by an earlier run; all processes must hear the same, from the one that has put scratch in order
        processes = Processes(scratch.item)
        finished = processes.main_first("finished", lambda: list(filter(scratch.has, variants)), scratch.guard)
        for variant, teacher in variants.items():
            if variant in finished:
                continue
            with Scratch(f"{scratch.item}-{variant}", fingerprint) as own:
                pool = open_pool(student, round_.pseudo, teacher, params.labels, params.held_out, seed)
                seed_everything(seed)
                model = build(arch, params, student, size, pool)
                start_from_topics(model.backbone, student.text, pool.training.rows, seed)
                lasts = params.epochs[arch] > 0
                result = pretrain(model, pool, params, params.of(arch), seed, precision, own) if lasts else None
                if is_main_process():
                    origin = origin_of_labels(round_.pseudo, teacher)
                    with scratch.sealed(variant) as folder:
                        if result is None:
                            keep_start(folder, model, origin, own)
                        else:
                            keep(folder, result, pool, params, origin, own)
                own.finish()
        if is_main_process():
            publish(scratch, list(variants), round_.models / "pretrain" / arch)
        scratch.finish()


def build(arch: str, params: PretrainParams, student: StudentParams, size: Any, pool: Pool) -> PretrainingModel:
    shape = pool.special.size, pool.feature_dim, pool.n_classes
    backbone, mlm_head = build_with_mlm_head(arch, student.text, size, *shape)
    return PretrainingModel(backbone, mlm_head, params.weights[arch], params)  # type: ignore[index]


def pretrain(
    model: PretrainingModel,
    pool: Pool,
    params: PretrainParams,
    training: TrainingParams,
    seed: int,
    precision: str,
    scratch: Scratch,
) -> TrainResult:
    views = training_views(params.masking, pool.training)
    videos = MismatchedVideos(pool.training, params.mismatched) if model.weights.itm else pool.training
    size, tokens = params.batch_size, params.batch_tokens
    return train(
        PretrainingTask(model),
        lambda epoch: EpochBatches(videos, size, seed=seed, epoch=epoch, batch_tokens=tokens, transform=views),
        training,
        learning_rates=params.lr.model_dump(),
        seed=seed,
        precision=precision,
        scratch=scratch,
    )


def keep(
    folder: Path, result: TrainResult, pool: Pool, params: PretrainParams, origin: dict[str, Any], scratch: Scratch
) -> None:
    """The EMA weights of backbone and classification head; the other heads have done their work."""
    device = load_runtime().torch_device()
    masking = masking_of(params.masking, pool.held_out)
    report = measure(result.ema, pool.held_out, masking, device)  # type: ignore[arg-type]
    last = {name: value for name, value in result.history[-1].items() if name.startswith("loss")}
    log.info(f"{scratch.item}: {', '.join(f'{name} {value:.4g}' for name, value in report.items())}")
    with write_folder_aside(folder) as aside:
        save_model(aside, result.ema.backbone)  # type: ignore[arg-type]
        write_curves(aside / "curves.csv", result.history)
        write_json(aside / ORIGIN, origin)
        write_json(aside / "metrics.json", report | last | {"videos": len(pool.training)})
        scratch.guard()


def keep_start(folder: Path, model: PretrainingModel, origin: dict[str, Any], scratch: Scratch) -> None:
    """0 epochs: the weights that pretraining would have started from. Nothing is measured, as nothing was learned."""
    with write_folder_aside(folder) as aside:
        save_model(aside, model.backbone)
        write_json(aside / ORIGIN, origin)
        write_json(aside / "metrics.json", {"videos": 0})
        scratch.guard()


def publish(scratch: Scratch, variants: list[str], target: Path) -> None:
    with write_folder_aside(target) as aside:
        for variant in variants:
            shutil.copytree(scratch.folder / variant, aside / variant)
        scratch.guard()


if __name__ == "__main__":
    main()
