"""python -m stages.split: the labelled videos to a locked holdout and folds, data/folds.parquet."""

import logging
from typing import Any

import numpy as np

from framefold.data.categories import read_categories
from framefold.data.folds import HOLDOUT, Folds, check_folds, make_folds
from framefold.data.samples import read_columns
from framefold.errors import command
from framefold.params.base import load
from framefold.params.split import SplitParams
from framefold.scratch import Scratch
from framefold.storage import write_json

log = logging.getLogger(__name__)


@command
def main() -> None:
    params = load(SplitParams)
    with Scratch("split", {}) as scratch:  # nothing is kept: this is short
        samples = read_columns("labeled", ["id", "label", "group"])
        label, group = (samples.column(name).to_numpy() for name in ("label", "group"))
        folds = make_folds(samples.column("id").combine_chunks(), label, group, params)
        check_folds(folds, params.n_folds)
        counts = count(folds, params.n_folds, read_categories().names)
        scratch.guard()
        folds.write()
        write_json("metrics/split.json", counts)
        scratch.finish()
    log.info("split: %d videos, holdout %d, folds %s", len(folds), counts["holdout"], counts["folds"])


def count(folds: Folds, n_folds: int, names: list[str]) -> dict[str, Any]:
    """Videos per fold, and the classes that a fold or the holdout cannot score."""
    absent = {fold: absent_classes(folds, fold, names) for fold in (HOLDOUT, *range(n_folds))}
    return {
        "holdout": len(folds.holdout),
        "holdout_share": round(len(folds.holdout) / len(folds), 6),
        "folds": [len(folds.validation(fold)) for fold in range(n_folds)],
        "groups": len(np.unique(folds.group)),
        "largest_group": int(np.unique(folds.group, return_counts=True)[1].max()),
        "classes": len(names),
        "smallest_class": int(np.bincount(folds.label, minlength=len(names)).min()),
        "classes_absent_from_holdout": absent[HOLDOUT],
        "classes_absent_from_validation": [absent[fold] for fold in range(n_folds)],
    }


def absent_classes(folds: Folds, fold: int, names: list[str]) -> list[str]:
    present = set(folds.label[folds.validation(fold)].tolist())
    return [name for label, name in enumerate(names) if label not in present]


if __name__ == "__main__":
    main()
