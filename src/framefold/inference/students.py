"""The finished students: predictions of every architecture and fold, as `average_weights` and `reweight` left them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from framefold.data.folds import REFIT
from framefold.data.origins import ORIGIN
from framefold.evaluation.metrics import official_scores
from framefold.evaluation.splits import LabeledVideos
from framefold.inference.ensembling import best_member
from framefold.inference.predictions import PROBE, read_aligned
from framefold.storage import read_json

PARTS = ("out_of_fold", "holdout", "test")
Logits = dict[str, np.ndarray]  # part -> (N, C)


@dataclass(frozen=True)
class Students:
    labeled: LabeledVideos
    test_ids: list[str]
    archs: Sequence[str]
    folds: Sequence[int]
    models: Path = Path("models")

    def ids(self, part: str) -> list[str]:
        """Videos of a part in store order."""
        if part == "test":
            return self.test_ids
        rows = self.labeled.out_of_fold_rows(self.folds) if part == "out_of_fold" else self.labeled.holdout_rows()
        return self.labeled.ids_of(rows)

    def logits(self, arch: str) -> Logits:
        """Of one architecture: each video's own fold model out of fold, the mean of all of them elsewhere."""
        return {part: read_aligned(self.models / "swa" / arch / f"{part}.parquet", self.ids(part)) for part in PARTS}

    def refit_logits(self, arch: str) -> np.ndarray:
        """(N, C) of the test videos, by the model that was trained on all labelled ones."""
        return read_aligned(self.models / "swa" / arch / REFIT / "test.parquet", self.test_ids)

    def probe(self) -> Logits:
        """Of the linear probe, as the models': each video's own fold out of fold, all folds elsewhere."""
        return {part: read_aligned(PROBE / f"{part}.parquet", self.ids(part)) for part in PARTS}

    def leaky(self) -> bool:
        """Whether any of them, or of those trained on all labelled videos, was given labels made without safeguards."""
        swa = self.models / "swa"
        return any(read_json(path)["leaky"] for arch in self.archs for path in (swa / arch).glob(f"*/{ORIGIN}"))

    def class_weights(self, arch: str) -> list[float]:
        return list(self.reweighting(arch)["weights"])

    def reweighting(self, arch: str) -> dict[str, Any]:
        return dict(read_json(self.models / "reweight" / f"{arch}.json"))

    def fold_reports(self, arch: str) -> list[dict[str, Any]]:
        """What `average_weights` tells of each fold."""
        folds = read_json(self.models / "swa" / arch / "metrics.json")["folds"]
        return [folds[str(fold)] for fold in self.folds]

    def best_fold(self, logits: dict[str, Logits]) -> tuple[str, int]:
        """The (arch, fold) with the best score on its own validation fold; holdout and test are not looked at."""
        rows = self.labeled.out_of_fold_rows(self.folds)
        labels, fold_of = self.labeled.labels[rows], self.labeled.folds[rows]
        scores = {}
        for arch in self.archs:
            predicted = logits[arch]["out_of_fold"].argmax(axis=1)
            for fold in self.folds:
                own = fold_of == fold
                scores[arch, fold] = official_scores(labels[own], predicted[own], self.labeled.categories)["score"]
        return best_member(scores)

    def fold_logits(self, arch: str, fold: int) -> Logits:
        """Of one model: validation (its own fold only), holdout, test."""
        folder = self.models / "swa" / arch / str(fold)
        own = self.labeled.ids_of(self.labeled.out_of_fold_rows([fold]))
        ids = {"validation": own, "holdout": self.ids("holdout"), "test": self.test_ids}
        return {part: read_aligned(folder / f"{part}.parquet", ids[part]) for part in ids}
