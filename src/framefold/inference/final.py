"""The ensemble's final scores of every part: class weights, then the blend."""

from collections.abc import Mapping

import numpy as np

from framefold.inference.bundle import Bundle
from framefold.inference.contributions import blended
from framefold.inference.cross_fitting import deal_parts
from framefold.inference.ensembling import Blend, Member, Method, OutOfFold, cross_fitted_blend, reweighted_probs
from framefold.inference.predictions import softmax
from framefold.inference.reweighting import weights_fitted_on
from framefold.inference.students import Logits, Students
from framefold.params.reweight import ReweightParams


def out_of_fold(students: Students, logits: Mapping[str, Logits], params: ReweightParams, how: Blend) -> OutOfFold:
    """What blend weights are fitted on; its parts are those of the class weights."""
    labeled = students.labeled
    rows = labeled.out_of_fold_rows(students.folds)
    labels, groups = labeled.labels[rows], labeled.groups[rows]
    parts = deal_parts(labels, groups, params.cross_fit_folds, params.seed)
    members = [member(students, arch, logits[arch]["out_of_fold"], labels, params) for arch in students.archs]
    return OutOfFold(members, labels, parts, labeled.categories, how)


def member(students: Students, arch: str, logits: np.ndarray, labels: np.ndarray, params: ReweightParams) -> Member:
    """logits (N, C), labels (N,) out of fold. Class weights are fitted where `reweight` found that they are of use."""
    labeled, used, probs = students.labeled, students.reweighting(arch)["used"], softmax(logits)

    def reweighted(rows: np.ndarray) -> np.ndarray:
        if not used:
            return probs
        weights = weights_fitted_on(rows, probs, labels, labeled.class_sizes(), labeled.categories, params)
        return reweighted_probs(logits, weights)

    return reweighted


def final_scores(
    bundle: Bundle, logits: Mapping[str, Logits], own: OutOfFold, method: Method, fitted: bool
) -> dict[str, np.ndarray]:
    """Part -> (N, C). Holdout and test by the bundle. Out of fold no video is judged by weights that were fitted on it,
    so they are fitted part by part. fitted: whether the bundle's blend weights are those of the method."""
    return {"out_of_fold": cross_fitted_blend(own, method, fitted)} | blended(bundle, logits, ("holdout", "test"))
