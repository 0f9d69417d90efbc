"""The teachers' soft labels of the unlabelled pool: python -m stages.pseudo_label

An earlier round of several: python -m stages.pseudo_label --round first --teachers models/teacher
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np

from framefold.data.folds import Folds
from framefold.data.pseudo_labels import (
    ORIGINS,
    TEACHERS,
    Assignment,
    assign_teachers,
    assign_to_all,
    check_assignment,
    write_labels,
)
from framefold.data.samples import read_columns, samples_path
from framefold.data.videos import CATEGORIES, FOLDS, Videos, open_labeled, open_videos, read_categories, store_paths
from framefold.errors import UserError, command
from framefold.evaluation.calibration import fit_temperature
from framefold.evaluation.pseudo_quality import (
    assignment_counts,
    out_of_fold_quality,
    pool_quality,
    teacher_quality,
    write_quality,
)
from framefold.inference.blocks import BlockFolder, shared_folder
from framefold.inference.committee import Committee, OutOfFold, students, teachers
from framefold.inference.neighbours import LabelledStates
from framefold.inference.processes import Processes
from framefold.inference.pseudo_labelling import Labeller, SoftLabels, label_pool
from framefold.launch import on_several_processes
from framefold.params.base import PARAMS_FILE, load, load_value
from framefold.params.models import StudentParams
from framefold.params.pseudo_label import PseudoLabelParams, temperature_problem
from framefold.params.teacher import TeacherParams
from framefold.rounds import Round, add_round
from framefold.runtime import load_runtime, resolve_precision
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import drop_unlisted, write_folder_aside, write_json

ARCHS = ["framefold.models.single_stream", "framefold.models.dual_stream"]
log = logging.getLogger(__name__)


@command
@on_several_processes
def main() -> None:
    params, (round_, folder) = load(PseudoLabelParams), read_arguments()
    per_fold, root, precision = (load_value(key) for key in ("pretrain.per_fold", "data.root", "precision"))
    source = folder or Path(params.teachers)
    if problem := temperature_problem(params, source != TEACHERS, per_fold):
        raise UserError(f"{PARAMS_FILE}: {problem}")
    load_runtime().prepare_cpu()
    processes = Processes(round_.item("pseudo_label"))
    committee, labeled = open_committee(source, processes), open_labeled()

    stamp = {"params": params.model_dump(), "committee": repr(committee), "run": [per_fold, precision]}
    with Scratch(processes.item, stage_fingerprint(stamp, inputs_of(committee, params), ARCHS)) as scratch:
        blocks, categories = shared_folder(scratch, processes), read_categories()
        assigned, trained_folds = assign(committee, labeled, params.leaky)
        known, videos = committee.predictions(labeled), open_videos("unlabeled", committee.encoder)
        labeller = open_labeller(committee, videos, known, params, precision)
        soft = SoftLabels(BlockFolder(blocks, len(videos)), len(categories), sorted(committee.members), per_fold)
        votes = None
        if params.source != "teachers":
            states = open_states(committee, blocks, labeller)
            states.compute(labeller.models, scratch, processes)
            labeller.neighbours = states.neighbours(labeller.models, trained_folds, params.k, len(categories))
            votes = states.out_of_fold(labeller.neighbours, committee.n_folds)
        label_pool(labeller, assigned.teacher, soft, scratch, processes)
        if not processes.main:
            return
        origin = {"folder": str(committee.folder), "leaky": params.leaky, "n_folds": committee.n_folds}
        origin |= {"folds": labeled.digest(), "trained_folds": trained_folds}
        publish(round_.pseudo, soft, videos, assigned, origin, scratch)
        scratch.guard()
        report = {"leaky": params.leaky, "counts": assignment_counts(assigned)}
        report |= {"neighbours_out_of_fold": out_of_fold_quality(*votes, categories)[0]} if votes else {}
        measure(round_, known, labeller.temperature, report, categories, Path(root))
        scratch.finish()


def read_arguments() -> tuple[Round, Path | None]:
    """The round, and who labels in it; the final round's teachers stand in params."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_round(parser)
    parser.add_argument("--teachers", type=Path, help="of an earlier round: folder of those who label")
    arguments = parser.parse_args()
    if (arguments.round_.name is None) != (arguments.teachers is None):
        parser.error("give --round and --teachers together, or neither")
    return arguments.round_, arguments.teachers


def open_committee(folder: Path, processes: Processes) -> Committee:
    if folder == TEACHERS:
        params = load(TeacherParams)
        processes.main_first("tidy", lambda: drop_unlisted(folder, params.folds))
        return teachers(params)
    if folder != Round(folder.parent.name).models / "swa":
        raise UserError(
            f"pseudo_label: {folder} is neither {TEACHERS} nor models/rounds/<name>/swa; correct who labels"
        )
    student, archs = load(StudentParams), load_value("archs")
    processes.main_first("tidy", lambda: drop_unlisted(folder, archs))
    return students(folder, archs, open_labeled(), student.encoder, student.inputs)


def inputs_of(committee: Committee, params: PseudoLabelParams) -> list[Path]:
    samples = [samples_path(split) for split in ("unlabeled", "test")]
    splits = ["unlabeled"] if params.source == "teachers" else ["unlabeled", "labeled"]
    stores = [path for split in splits for path in store_paths(split, committee.encoder)]
    return [FOLDS, CATEGORIES, committee.folder, *samples, *stores]


def assign(committee: Committee, labeled: Folds, leaky: bool) -> tuple[Assignment, dict[int, list[int]]]:
    """Who labels what, checked against what the teachers were trained on."""
    trained_folds = committee.trained_folds(labeled, leaky)
    groups, test_groups = (read_columns(split, ["group"])["group"].to_numpy() for split in ("unlabeled", "test"))
    if leaky:
        log.warning(
            "pseudo_label: leaky, so labels of judged videos reach the pool; this run's scores are no estimates"
        )
        return assign_to_all(groups), trained_folds
    assigned = assign_teachers(groups, labeled, test_groups, committee.n_folds, sorted(committee.members))
    check_assignment(assigned, groups, labeled, test_groups, trained_folds)
    return assigned, trained_folds


def open_labeller(
    committee: Committee, videos: Videos, known: OutOfFold, params: PseudoLabelParams, precision: str
) -> Labeller:
    device = load_runtime().torch_device()
    temperature = params.temperature
    if isinstance(temperature, str):
        temperature = fit_temperature(known.probs, known.truth)
    settings = {"batch_size": params.batch_size, "device": device, "precision": resolve_precision(precision, device)}
    dataset = videos.dataset(np.arange(len(videos)), committee.inputs)
    return Labeller(committee.load(device), dataset, temperature, settings, None, params.source == "neighbours")


def open_states(committee: Committee, blocks: Path, labeller: Labeller) -> LabelledStates:
    videos = open_videos("labeled", committee.encoder)
    dataset = videos.dataset(np.arange(len(videos)), committee.inputs)
    return LabelledStates(blocks.with_name(f"states-{blocks.name}"), open_labeled(videos), dataset, labeller.settings)


def publish(
    target: Path, soft: SoftLabels, videos: Videos, assigned: Assignment, origin: dict[str, Any], scratch: Scratch
) -> None:
    with write_folder_aside(target) as aside:
        soft.publish(aside)
        write_labels(aside, videos.ids, assigned, soft.hard_labels())
        write_json(aside / ORIGINS, origin)
        scratch.guard()


def measure(
    round_: Round, known: OutOfFold, temperature: float, report: dict[str, Any], categories: list[str], root: Path
) -> None:
    truth = root / "annotations" / "unlabeled_truth.csv"
    pool, pool_rows = pool_quality(round_.pseudo / "labels.parquet", truth, categories)
    own, own_rows = teacher_quality(known, temperature, categories)
    log.info(f"pseudo_label: teachers out of fold {own['teacher_out_of_fold']['score']:.4f}, pool {pool}")
    write_json(round_.metrics / "pseudo_label.json", report | own | {"pool": pool})
    write_quality(round_.metrics / "plots" / "pseudo_label_quality.csv", own_rows + pool_rows)


if __name__ == "__main__":
    main()
