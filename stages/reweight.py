"""Class weights for the long tail, fitted on out-of-fold predictions: python -m stages.reweight --arch single_stream"""

import argparse
import logging
from pathlib import Path

from framefold.errors import command
from framefold.evaluation.splits import read_labeled
from framefold.inference.predictions import read_aligned, softmax
from framefold.inference.reweighting import fit_reweighting
from framefold.params.base import load, load_value
from framefold.params.reweight import ReweightParams
from framefold.scratch import Scratch
from framefold.storage import write_json

log = logging.getLogger(__name__)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", required=True)
    arch = parser.parse_args().arch

    with Scratch(f"reweight@{arch}", {}) as scratch:  # nothing is kept: this is short
        labeled = read_labeled()
        rows = labeled.out_of_fold_rows(load_value("folds"))
        logits = read_aligned(Path("models/swa") / arch / "out_of_fold.parquet", labeled.ids_of(rows))
        fit = fit_reweighting(
            softmax(logits),
            labeled.labels[rows],
            labeled.groups[rows],
            labeled.class_sizes(),
            labeled.categories,
            load(ReweightParams),
        )
        scratch.guard()
        write_json(Path("models/reweight") / f"{arch}.json", fit)
        scratch.finish()
    for name, found in fit.get("methods", {}).items():
        gains = f"gain {found['in_sample_gain']:+.4f} in sample, {found['cross_fitted_gain']:+.4f} cross-fitted"
        log.info(f"reweight {arch}: {name}, {gains}")
    log.info(f"reweight {arch}: {fit['method']} is {'used' if fit['used'] else 'not used'}")


if __name__ == "__main__":
    main()
