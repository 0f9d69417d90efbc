"""What cheap methods could gain at most on a finished run: python -m benchmarks.ceilings

Run it in a project after `dvc repro`. It tells, for each architecture, by how much the EMA beats the raw weights on the
validation fold after every epoch of finetuning; then, for each part, the score without class weights, and by how much
the best point of each grid in the params beats it when it is fitted on the truth of that very part (for blend weights:
beats equal ones). No honest fit gains more.

That looks at the truth of holdout and test. It explains; nothing may be chosen by it.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from framefold.data.samples import read_columns
from framefold.errors import command
from framefold.evaluation.metrics import official_scores
from framefold.evaluation.splits import Target, read_labeled, read_targets
from framefold.inference.blend_weights import simplex_grid
from framefold.inference.ensembling import blend
from framefold.inference.predictions import softmax
from framefold.inference.reweighting import Setting, formula_settings, logit_adjustment_settings
from framefold.inference.students import Students
from framefold.params.base import load, load_value
from framefold.params.data import DataParams
from framefold.params.ensemble import EnsembleParams
from framefold.params.reweight import ReweightParams
from framefold.storage import read_json

log = logging.getLogger(__name__)
FINETUNED = Path("models/finetune")


def ema_gains(arch: str, folds: Sequence[int]) -> np.ndarray:
    """(folds, epochs) score of the EMA on the validation fold minus that of the raw weights."""
    reports = [read_json(FINETUNED / arch / str(fold) / "metrics.json")["epochs"] for fold in folds]
    return np.array([[epoch["ema"] - epoch["raw"] for epoch in report] for report in reports])


def score(target: Target, scores: np.ndarray) -> float:
    """scores (N, C) of the part's videos in store order."""
    return official_scores(target.labels, scores[target.rows].argmax(axis=1), target.categories)["score"]


def ceiling(target: Target, candidates: Iterable[np.ndarray]) -> float:
    """The best score among candidates (N, C), by the truth that it is then told of."""
    return max(score(target, candidate) for candidate in candidates)


def reweighted(probs: np.ndarray, settings: Sequence[Setting]) -> Iterable[np.ndarray]:
    return (probs * setting.weights for setting in settings)


def rows_of(students: Students, targets: dict[str, Target]) -> Iterable[list[str]]:
    """Cells of the table: whose, what is fitted, and for each part the score (none) or what fitting adds to it."""
    sizes, params = students.labeled.class_sizes(), load(ReweightParams)
    settings = {
        "class weights, formula": formula_settings(sizes, params),
        "class weights, priors": logit_adjustment_settings(sizes, params),
    }
    logits = {arch: students.logits(arch) for arch in students.archs}
    probs = {part: {arch: softmax(logits[arch][part]) for arch in students.archs} for part in targets}
    for arch in students.archs:
        plain = {part: score(target, probs[part][arch]) for part, target in targets.items()}
        yield [arch, "none", *(f"{value:.4f}" for value in plain.values())]
        for name, grid in settings.items():
            most = {part: ceiling(target, reweighted(probs[part][arch], grid)) for part, target in targets.items()}
            yield [arch, name, *(f"{most[part] - plain[part]:+.4f}" for part in targets)]
    if len(students.archs) > 1:
        gains = {part: blend_gain(probs[part], target) for part, target in targets.items()}
        yield ["ensemble", "blend weights, simplex", *(f"{gain:+.4f}" for gain in gains.values())]


def blend_gain(probs: Mapping[str, np.ndarray], target: Target) -> float:
    """By how much the best blend weights beat equal ones."""
    members, how, grid = list(probs.values()), load(EnsembleParams).blend, simplex_grid(len(probs))
    return ceiling(target, (blend(members, each, how) for each in grid)) - score(target, blend(members, grid[0], how))


@command
def main() -> None:
    archs, folds = load_value("archs"), load_value("folds")
    for arch in archs:
        gains = ema_gains(arch, folds)
        told = ", ".join(f"{mean:+.4f} ({low:+.4f} to {high:+.4f})" for mean, low, high in spans(gains))
        log.info(f"EMA minus raw weights by epoch, {arch}, mean of {len(folds)} folds (lowest to highest): {told}")
    test_ids = read_columns("test", ["id"])["id"].to_pylist()
    students = Students(read_labeled(), test_ids, archs, folds)
    targets = read_targets(students.labeled, folds, load(DataParams).root, test_ids)
    log.info(f"| | fitted on the part itself | {' | '.join(targets)} |")
    for row in rows_of(students, targets):
        log.info(f"| {' | '.join(row)} |")


def spans(gains: np.ndarray) -> Iterable[tuple[float, float, float]]:
    return zip(gains.mean(axis=0), gains.min(axis=0), gains.max(axis=0), strict=True)


if __name__ == "__main__":
    main()
