"""The ensemble's final scores of every part: class weights, then the blend."""

from collections.abc import Mapping

import numpy as np

from framefold.inference.bundle import Bundle
from framefold.inference.contributions import blended
from framefold.inference.cross_fitting import deal_parts
from framefold.inference.ensembling import Member, OutOfFold, cross_fitted_blend, reweighted_probs
from framefold.inference.predictions import softmax
from framefold.inference.reweighting import weights_fitted_on
from framefold.inference.students import Logits, Students
from framefold.params.base import load
from framefold.params.ensemble import EnsembleParams
from framefold.params.reweight import ReweightParams


def out_of_fold(students: Students, logits: Mapping[str, Logits]) -> OutOfFold:
    """What blend weights are fitted on; its parts are those of the class weights."""
    labeled, params = students.labeled, load(ReweightParams)
    rows = labeled.out_of_fold_rows(students.folds)
    labels, groups = labeled.labels[rows], labeled.groups[rows]
    parts = deal_parts(labels, groups, params.cross_fit_folds, params.seed)
    members = [member(students, arch, logits[arch]["out_of_fold"], labels) for arch in students.archs]
    return OutOfFold(members, labels, parts, labeled.categories, load(EnsembleParams).blend)


def member(students: Students, arch: str, logits: np.ndarray, labels: np.ndarray) -> Member:
    """logits (N, C), labels (N,) out of fold. Class weights are fitted where `reweight` found that they are of use."""
    labeled, params, used = students.labeled, load(ReweightParams), students.reweighting(arch)["used"]
    probs = softmax(logits)

    def reweighted(rows: np.ndarray) -> np.ndarray:
        if not used:
            return probs
        weights = weights_fitted_on(rows, probs, labels, labeled.class_sizes(), labeled.categories, params)
        return reweighted_probs(logits, weights)

    return reweighted


def final_scores(
    bundle: Bundle, students: Students, logits: Mapping[str, Logits], blend_used: bool
) -> dict[str, np.ndarray]:
    """Part -> (N, C). Holdout and test by the bundle. Out of fold no video is judged by weights that were fitted on it,
    so they are fitted part by part. blend_used: whether fitted blend weights are."""
    final = blended(bundle, logits, ("holdout", "test"))
    own = cross_fitted_blend(out_of_fold(students, logits), load(EnsembleParams).weights, blend_used)
    return {"out_of_fold": own} | final
