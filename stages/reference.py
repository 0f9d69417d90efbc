"""The linear probe on text, on frames and on both, on the same splits as the models: python -m stages.reference"""

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np

from framefold.data.features import FeatureStore
from framefold.errors import command
from framefold.evaluation.probe import VIEWS, ProbeVideos, View, probe_scores, read_videos
from framefold.evaluation.scoring import Scorer
from framefold.evaluation.splits import LabeledVideos, read_labeled, read_targets
from framefold.inference.predictions import PROBE, write_predictions
from framefold.params.base import load, load_value
from framefold.params.data import DataParams
from framefold.params.ensemble import EnsembleParams
from framefold.params.reference import ReferenceParams
from framefold.scratch import Scratch, stage_fingerprint
from framefold.storage import read_parquet, write_aside, write_folder_aside, write_json

SAMPLES = Path("data/samples")
log = logging.getLogger(__name__)


@command
def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params, encoder, folds = load(ReferenceParams), load_value("student.encoder"), load_value("folds")
    features = {split: Path("data/features") / encoder / split for split in ("labeled", "test")}
    inputs = [SAMPLES, Path("data/folds.parquet"), *features.values()]
    labeled = read_labeled()
    with Scratch("reference", stage_fingerprint(params.model_dump() | {"folds": folds}, inputs)) as scratch:
        pool, test = (read_videos(SAMPLES / f"{split}.parquet", FeatureStore(path)) for split, path in features.items())
        predictions = predict_all(pool, test, labeled, folds, params, scratch)
        ids = read_parquet(SAMPLES / "test.parquet", columns=["id"])["id"].to_pylist()
        scorer = Scorer(read_targets(labeled, folds, load(DataParams).root, ids), load(EnsembleParams))
        scratch.guard()
        publish(predictions["both"], labeled, folds, ids, scratch)
        write_json("metrics/reference.json", {view: scorer.entries(predictions[view]) for view in VIEWS})
        scratch.finish()


def publish(
    predictions: dict[str, np.ndarray], labeled: LabeledVideos, folds: list[int], test_ids: list[str], scratch: Scratch
) -> None:
    """For stage `ensemble`, which tells what the models gain on the probe, video by video."""
    rows = {"out_of_fold": labeled.out_of_fold_rows(folds), "holdout": labeled.holdout_rows()}
    ids = {part: labeled.ids_of(own) for part, own in rows.items()} | {"test": test_ids}
    with write_folder_aside(PROBE) as aside:
        for part, scores in predictions.items():
            write_predictions(aside / f"{part}.parquet", ids[part], scores)
        scratch.guard()


def predict_all(
    pool: ProbeVideos,
    test: ProbeVideos,
    labeled: LabeledVideos,
    folds: list[int],
    params: ReferenceParams,
    scratch: Scratch,
) -> dict[View, dict[str, np.ndarray]]:
    """One fit per fold, on the other folds, then one on all folds for holdout and test."""
    known, holdout = labeled.training_rows(), labeled.holdout_rows()
    scores = {view: np.zeros((len(labeled.ids), len(labeled.categories)), np.float32) for view in VIEWS}
    for fold in folds:
        rows = known[labeled.folds[known] != fold]
        validation = labeled.out_of_fold_rows([fold])
        for view, (part,) in fit(f"fold-{fold}", pool, rows, [pool.take(validation)], labeled, params, scratch).items():
            scores[view][validation] = part
    final = fit("final", pool, known, [pool.take(holdout), test], labeled, params, scratch)
    rows = labeled.out_of_fold_rows(folds)
    return {
        view: {"out_of_fold": scores[view][rows], "holdout": final[view][0], "test": final[view][1]} for view in VIEWS
    }


def fit(
    name: str,
    pool: ProbeVideos,
    rows: np.ndarray,
    others: list[ProbeVideos],
    labeled: LabeledVideos,
    params: ReferenceParams,
    scratch: Scratch,
) -> dict[View, list[np.ndarray]]:
    """Decision values of `others` per view; a finished fit is kept in scratch, and a killed run goes on behind it."""
    path = scratch.folder / f"{name}.npz"
    if not scratch.has(path.name):
        scores = probe_scores(pool.take(rows), labeled.labels[rows], others, len(labeled.categories), params)
        with scratch.sealed(path.name), write_aside(path) as aside, open(aside, "wb") as file:
            parts = {f"{view}-{i}": part for view in VIEWS for i, part in enumerate(scores[view])}
            arrays: dict[str, Any] = {name: part.astype(np.float32) for name, part in parts.items()}
            np.savez(file, **arrays)
        log.info(f"reference: {name} fitted on {len(rows)} videos")
        scratch.guard()
    with np.load(path) as stored:
        return {view: [stored[f"{view}-{i}"] for i in range(len(others))] for view in VIEWS}


if __name__ == "__main__":
    main()
