"""How much a linear classifier reads from an encoder's frame features: does adapting the encoder help?"""

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framefold.data.decoding import Decoder, decode
from framefold.data.extraction import Encode, EncodedFrames
from framefold.data.folds import HOLDOUT, Folds
from framefold.data.images import Preprocess
from framefold.data.manifest import SplitManifest
from framefold.data.videos import fold_rows
from framefold.data.workers import Guard, WorkerPool, batched
from framefold.evaluation.metrics import official_scores
from framefold.evaluation.probe import linear_scores

MAX_VIDEOS = 4000  # enough to tell encoders apart; decoding all of a large data set would take longer than adapting
MAX_FRAMES = 4
VIDEOS_AT_ONCE = 1024  # batches end with them


class FramesProbe:
    """Labelled videos outside the holdout; every fold is predicted from the others. What `guard` raises ends it."""

    def __init__(self, root: Path, labeled: Folds, categories: list[str], workers: int, batch_size: int, guard: Guard):
        usable = np.flatnonzero(labeled.fold != HOLDOUT)
        self.rows = np.sort(np.random.default_rng(0).permutation(usable)[:MAX_VIDEOS])
        self.root, self.labeled, self.categories = root, labeled, categories
        self.workers, self.batch_size, self.guard = workers, batch_size, guard

    def score(self, encode: Encode, preprocess: Preprocess, dim: int) -> dict[str, float]:
        """Official scores out of fold of a linear SVM on mean features.

        "probe": features of unit length, as `reference` has them, which also measures whether features differ enough
        in scale to be told apart. "probe_standardized": every dimension of unit variance first, which is kinder to the
        features of a random tower: these are nearly the same vector for all images.
        """
        means = self.mean_features(encode, preprocess, dim)
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        unit = means / np.maximum(lengths, 1e-12)
        return {
            "probe": self.out_of_fold_score(unit, regularization=1.0),
            "probe_standardized": self.out_of_fold_score(
                (unit - unit.mean(0)) / (unit.std(0) + 1e-6), regularization=0.01
            ),
        }

    def out_of_fold_score(self, features: npt.NDArray[np.float32], regularization: float) -> float:
        """features (len(rows), dim)."""
        from scipy.sparse import csr_matrix

        label, place = self.labeled.label, np.full(len(self.labeled), -1)
        place[self.rows] = np.arange(len(self.rows))
        predicted = np.full(len(self.labeled), -1)
        for fold in np.unique(self.labeled.fold[self.rows]):
            train, validate = (rows[place[rows] >= 0] for rows in fold_rows(self.labeled, self.labeled.fold == fold))
            seen, unseen = (csr_matrix(features[place[rows]]) for rows in (train, validate))
            (scores,) = linear_scores(seen, label[train], [unseen], len(self.categories), regularization)
            predicted[validate] = scores.argmax(1)
        return official_scores(label[self.rows], predicted[self.rows], self.categories)["score"]

    def mean_features(self, encode: Encode, preprocess: Preprocess, dim: int) -> npt.NDArray[np.float32]:
        """(len(rows), dim): zeros for a video without frames."""
        means = np.zeros((len(self.rows), dim), np.float32)
        manifest, place = SplitManifest(self.root, "labeled"), 0
        with WorkerPool(self.workers, self.guard) as pool:
            videos = partial(decode, pool, Decoder(str(self.root), preprocess, MAX_FRAMES))
            source = EncodedFrames(manifest, videos, encode, dim, self.batch_size)
            todo = batched(self.labeled.ids.take(self.rows).to_pylist(), VIDEOS_AT_ONCE)
            for n_frames, features, _ in source.shards(todo):
                for video in np.split(features.astype(np.float32), np.cumsum(n_frames)[:-1]):
                    means[place] = video.mean(0) if len(video) else 0.0
                    place += 1
        return means
