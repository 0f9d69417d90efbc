"""The blend of all students, its bundle, the submission and every score: python -m stages.ensemble"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from framefold.data.samples import read_columns
from framefold.errors import command
from framefold.evaluation.report import write_contributions, write_report
from framefold.evaluation.scoring import Scorer
from framefold.evaluation.splits import read_labeled, read_targets
from framefold.inference.bundle import Bundle, write_bundle
from framefold.inference.ensembling import fit_blend
from framefold.inference.final import final_scores, out_of_fold
from framefold.inference.students import Students
from framefold.inference.submission import complete_submission, write_submission
from framefold.params.average_weights import AverageWeightsParams
from framefold.params.base import load, load_value
from framefold.params.data import DataParams
from framefold.params.encoders import EncoderParams
from framefold.params.ensemble import EnsembleParams
from framefold.params.ingest import IngestParams
from framefold.params.models import StudentParams
from framefold.params.reweight import ReweightParams
from framefold.params.text import TextParams
from framefold.scratch import Scratch
from framefold.storage import drop_unlisted, write_folder_aside

log = logging.getLogger(__name__)


@command
def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    archs, folds, root = load_value("archs"), load_value("folds"), Path(load(DataParams).root)
    drop_unlisted("models/swa", archs)
    drop_unlisted("models/pretrain", archs)
    drop_unlisted("models/reweight", [f"{arch}.json" for arch in archs])
    drop_unlisted("models/clip", load_value("encoders"))
    with Scratch("ensemble", {}) as scratch:  # keeps nothing: the lock, and the check that dvc still waits for us
        labeled, test_ids = read_labeled(), read_columns("test", ["id"])["id"].to_pylist()
        students = Students(labeled, test_ids, archs, folds)
        logits = {arch: students.logits(arch) for arch in archs}
        own = out_of_fold(students, logits, load(ReweightParams), load(EnsembleParams).blend)
        blend = fit_blend(own, load(EnsembleParams).weights, load(EnsembleParams).min_gain)
        bundle = describe(students, blend["weights"])
        final = final_scores(bundle, logits, own, load(EnsembleParams).weights, blend["used"])
        refits = load_value("full_data")
        refit = bundle.scores({arch: students.refit_logits(arch) for arch in archs}) if refits else None
        scorer = Scorer(read_targets(labeled, folds, root, test_ids), load(EnsembleParams))
        scratch.guard()
        write_report(students, logits, final, refit, blend, scorer, root)
        write_contributions(bundle, students, logits, scorer)
        submit(root, students, final["test"] if refit is None else refit)
        with write_folder_aside("models/ensemble") as aside:
            write_bundle(aside, bundle.model_copy(update={"folds": refits or bundle.folds}))
            scratch.guard()
        scratch.finish()


def submit(root: Path, students: Students, scores: np.ndarray) -> None:
    """scores (N, C) of the test videos -> data/predictions/result.csv."""
    categories, sizes = students.labeled.categories, students.labeled.class_sizes()
    predicted = dict(zip(students.test_ids, (categories[label] for label in scores.argmax(axis=1)), strict=True))
    rows = complete_submission(root / "annotations" / "test.json", predicted, usual=categories[int(sizes.argmax())])
    write_submission("data/predictions/result.csv", rows)


def describe(students: Students, blend_weights: Sequence[float]) -> Bundle:
    student = load(StudentParams)
    encoder = load(EncoderParams, f"encoders.{student.encoder}")
    return Bundle(
        categories=students.labeled.categories,
        archs=list(students.archs),
        folds=list(students.folds),
        blend=load(EnsembleParams).blend,
        blend_weights=list(blend_weights),
        class_weights={arch: students.class_weights(arch) for arch in students.archs},
        encoder=student.encoder,
        max_frames=encoder.max_frames,
        encoder_batch_size=encoder.batch_size,
        batch_size=load(AverageWeightsParams).batch_size,
        inputs=student.inputs,
        max_tokens=load(TextParams).max_tokens,
        max_text=load(IngestParams).max_text,
    )


if __name__ == "__main__":
    main()
