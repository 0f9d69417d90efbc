"""The teachers' soft labels of the unlabelled pool: python -m stages.pseudo_label"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np

from framefold.data.pseudo_labels import (
    NOBODY,
    ORIGINS,
    PSEUDO,
    Assignment,
    assign_teachers,
    check_assignment,
    read_origins,
    write_labels,
)
from framefold.data.samples import read_columns, samples_path
from framefold.data.videos import CATEGORIES, FOLDS, Videos, open_labeled, open_videos, read_categories, store_paths
from framefold.errors import command
from framefold.evaluation.pseudo_quality import out_of_fold_quality, pool_quality, write_quality
from framefold.inference.blocks import BlockFolder, shared_folder
from framefold.inference.processes import Processes
from framefold.inference.pseudo_labelling import SoftLabels, label_pool
from framefold.launch import on_several_processes
from framefold.models.registry import load_model
from framefold.params.base import load, load_value
from framefold.params.pseudo_label import PseudoLabelParams
from framefold.params.teacher import TeacherParams
from framefold.runtime import load_runtime, resolve_precision
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import drop_unlisted, write_folder_aside, write_json

TEACHERS = Path("models/teacher")
METRICS, QUALITY = Path("metrics/pseudo_label.json"), Path("metrics/plots/pseudo_label_quality.csv")
log = logging.getLogger(__name__)


@command
@on_several_processes
def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params, teacher = load(PseudoLabelParams), load(TeacherParams)
    per_fold, root, precision = (load_value(key) for key in ("pretrain.per_fold", "data.root", "precision"))
    runtime = load_runtime()
    runtime.prepare_cpu()
    device, processes = runtime.torch_device(), Processes("pseudo_label")
    processes.main_first("tidy", lambda: drop_unlisted(TEACHERS, teacher.folds))

    stamp = {"params": [params.model_dump(), teacher.model_dump(mode="json")], "run": [per_fold, precision]}
    samples = [samples_path(split) for split in ("unlabeled", "test")]
    inputs = [FOLDS, CATEGORIES, TEACHERS, *samples, *store_paths("unlabeled", teacher.encoder)]
    with Scratch(processes.item, stage_fingerprint(stamp, inputs, ["framefold.models.single_stream"])) as scratch:
        folder = shared_folder(scratch, processes)
        videos, categories = open_videos("unlabeled", teacher.encoder), read_categories()
        assigned, trained_folds = assign(teacher)
        soft = SoftLabels(BlockFolder(folder, len(videos)), len(categories), sorted(teacher.folds), per_fold)
        label_pool(
            {fold: load_model(TEACHERS / str(fold)) for fold in soft.teachers},
            videos.dataset(np.arange(len(videos)), teacher.inputs),
            assigned.teacher,
            soft,
            scratch,
            processes,
            temperature=params.temperature,
            batch_size=params.batch_size,
            device=device,
            precision=resolve_precision(precision, device),
        )
        if not processes.main:
            return
        origin = {"n_folds": teacher.n_folds, "trained_folds": trained_folds}
        publish(soft, videos, assigned, origin, scratch)
        scratch.guard()
        measure(assigned, teacher.folds, categories, Path(root))
        scratch.finish()


def assign(teacher: TeacherParams) -> tuple[Assignment, dict[int, list[int]]]:
    """Who labels what, checked against what the teachers were trained on."""
    trained_folds = read_origins(TEACHERS, sorted(teacher.folds), teacher.n_folds)
    groups, test_groups = (read_columns(split, ["group"])["group"].to_numpy() for split in ("unlabeled", "test"))
    labeled = open_labeled()
    assigned = assign_teachers(groups, labeled, test_groups, teacher.n_folds, teacher.folds)
    check_assignment(assigned, groups, labeled, test_groups, trained_folds)
    return assigned, trained_folds


def publish(soft: SoftLabels, videos: Videos, assigned: Assignment, origin: dict[str, Any], scratch: Scratch) -> None:
    with write_folder_aside(PSEUDO) as aside:
        soft.publish(aside)
        write_labels(aside, videos.ids, assigned, soft.hard_labels())
        write_json(aside / ORIGINS, origin)
        scratch.guard()


def measure(assigned: Assignment, teachers: list[int], categories: list[str], root: Path) -> None:
    pool, pool_rows = pool_quality(PSEUDO / "labels.parquet", root / "annotations" / "unlabeled_truth.csv", categories)
    known, known_rows = out_of_fold_quality(
        [TEACHERS / str(fold) for fold in sorted(teachers)], open_labeled(), categories
    )
    counts = {"videos": len(assigned.usable), "not_usable": int((~assigned.usable).sum())}
    counts["without_label"] = int((assigned.usable & (assigned.teacher == NOBODY)).sum())
    counts["by_one_teacher"] = int((assigned.teacher >= 0).sum())
    log.info(f"pseudo_label: teachers out of fold {known['score']:.4f}, pool {pool}")
    write_json(METRICS, {"counts": counts, "teacher_out_of_fold": known, "pool": pool})
    write_quality(QUALITY, known_rows + pool_rows)


if __name__ == "__main__":
    main()
