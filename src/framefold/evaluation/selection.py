"""What choosing checkpoints by fold score gains, and how much of that is only claimed, from what the stages left.

"top": finetune kept the best epochs (checkpoints.select); "greedy": average_weights took the soup of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from framefold.evaluation.alive import Check, not_below

GAINS = ("in_sample_gain", "cross_fitted_gain")


def selection_of(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An architecture's entry of selection.json, from those of its folds in models/swa/<arch>/metrics.json.

    The mean gains of each choice that was made, and their optimism: by about so much is the out-of-fold score too high.
    """
    gains = {"top": [fold["finetune"].get("selection") for fold in folds]}
    gains["greedy"] = [fold.get("selection") for fold in folds]
    made = {name: [each for each in per_fold if each] for name, per_fold in gains.items()}
    means = {name: mean_gains(per_fold) for name, per_fold in made.items() if per_fold}
    return means | {"optimism": sum(each["in_sample_gain"] - each["cross_fitted_gain"] for each in means.values())}


def mean_gains(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([gains[name] for gains in folds])) for name in GAINS}


def selection_checks(selection: Mapping[str, Mapping[str, Any]]) -> dict[str, Check]:
    """A choice of checkpoints must do no harm on videos that it did not see."""
    return {
        f"{name}_checkpoints/{arch}": not_below(gains["cross_fitted_gain"], 0.0)
        for arch, made in selection.items()
        for name, gains in made.items()
        if name != "optimism"
    }
