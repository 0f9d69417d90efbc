"""What every member of the ensemble is worth: its score without it.

Weights are not fitted again: the others' blend weights stand in proportion, the other folds' logits are averaged.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from framefold.inference.bundle import Bundle
from framefold.inference.predictions import mean_logits

Logits = Mapping[str, np.ndarray]  # part -> (N, C)
Differences = Callable[[Logits, Logits], Mapping[str, Any]]
FOLDED = ("holdout", "test")  # parts that all folds' models predict; out of fold each video has one model


def leave_one_out(
    bundle: Bundle,
    logits: Mapping[str, Logits],
    member_logits: Callable[[str, int], Logits],
    differences: Differences,
) -> dict[str, Any]:
    """Content of contributions.json: the score without a part of the ensemble minus that of the whole.

    {"archs": {arch: {part: entry}}, "members": {arch/fold: {part: entry}}}; below 0: it helps. logits: of each arch, as
    the bundle takes them; member_logits(arch, fold): of one model; differences(first, second): entries of their
    scores' paired difference. Nothing for the only arch, nor for the only fold of one (that is its arch).
    """
    whole = blended(bundle, logits, tuple(logits[bundle.archs[0]]))
    archs, members = {}, {}
    for arch in bundle.archs if len(bundle.archs) > 1 else ():
        archs[arch] = dict(differences(blended(without_arch(bundle, arch), logits, tuple(whole)), whole))
    for arch in bundle.archs if len(bundle.folds) > 1 else ():
        each = [member_logits(arch, int(fold)) for fold in bundle.folds]
        for place, fold in enumerate(bundle.folds):
            others = {**logits, arch: without_fold(each, place)}
            members[f"{arch}/{fold}"] = dict(differences(blended(bundle, others, FOLDED), whole))
    return {"archs": archs, "members": members}


def blended(bundle: Bundle, logits: Mapping[str, Logits], parts: Sequence[str]) -> dict[str, np.ndarray]:
    """Part -> final scores (N, C)."""
    return {part: bundle.scores({arch: logits[arch][part] for arch in bundle.archs}) for part in parts}


def without_arch(bundle: Bundle, arch: str) -> Bundle:
    """The blend of the other architectures, their weights in proportion; equal if all of them are 0."""
    kept = {other: weight for other, weight in zip(bundle.archs, bundle.blend_weights, strict=True) if other != arch}
    total = sum(kept.values())
    weights = [weight / total if total > 0 else 1 / len(kept) for weight in kept.values()]
    return bundle.model_copy(update={"archs": list(kept), "blend_weights": weights})


def without_fold(each: Sequence[Logits], place: int) -> Logits:
    """Mean logits of all members of an architecture but one."""
    others = [*each[:place], *each[place + 1 :]]
    return {part: mean_logits([member[part] for member in others]) for part in FOLDED}
