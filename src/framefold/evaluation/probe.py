"""The linear probe: TF-IDF character n-grams, mean frame features, a linear SVM. What the deep part must beat.

scikit-learn is imported where it is used: it takes a second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np

from framefold.data.features import FeatureStore
from framefold.errors import UserError
from framefold.params.reference import ReferenceParams
from framefold.storage import read_parquet

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

View = Literal["text", "frames", "both"]
VIEWS: tuple[View, ...] = ("text", "frames", "both")


class ProbeVideos(NamedTuple):
    """What the probe sees of N videos."""

    texts: list[str]
    frames: np.ndarray  # (N, D) unit-length mean features; zeros without frames

    def take(self, rows: np.ndarray) -> Self:
        return type(self)([self.texts[row] for row in rows], self.frames[rows])


def read_videos(samples: Path | str, features: FeatureStore) -> ProbeVideos:
    """Row by row from the samples and the feature store of one split, which must hold the same videos."""
    table = read_parquet(samples, columns=["id", "title", "asr", "ocr"])
    if not table["id"].equals(features.ids):
        raise UserError(f"{samples} and {features.path}: not the same videos; rebuild both with `dvc repro`")
    columns = [table[name].to_pylist() for name in ("title", "asr", "ocr")]
    return ProbeVideos([" ".join(parts) for parts in zip(*columns, strict=True)], mean_features(features))


def mean_features(store: FeatureStore) -> np.ndarray:
    """(N, D) float32: the mean of each video's frame features, unit length; zeros for a video without frames."""
    means = np.zeros((len(store), store.dim), dtype=np.float32)
    for row in np.flatnonzero(store.counts):
        mean = store.frames(int(row), None).astype(np.float32).mean(axis=0)
        means[row] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return means


def probe_scores(
    train: ProbeVideos, labels: np.ndarray, others: Sequence[ProbeVideos], n_classes: int, params: ReferenceParams
) -> dict[View, list[np.ndarray]]:
    """Per view, the decision values (N, n_classes) of each of `others`; nothing is fitted on them."""
    tfidf = fit_tfidf(train.texts, params)
    seen, unseen = views(train, tfidf, params), [views(other, tfidf, params) for other in others]
    return {
        view: linear_scores(seen[view], labels, [other[view] for other in unseen], n_classes, params.regularization)
        for view in VIEWS
    }


def views(videos: ProbeVideos, tfidf: "TfidfVectorizer", params: ReferenceParams) -> "dict[View, csr_matrix]":
    from scipy.sparse import csr_matrix, hstack

    text, frames = tfidf.transform(videos.texts), csr_matrix(videos.frames * params.frame_weight)
    return {"text": text, "frames": frames, "both": hstack([text, frames]).tocsr()}


def fit_tfidf(texts: Sequence[str], params: ReferenceParams) -> "TfidfVectorizer":
    from sklearn.feature_extraction.text import TfidfVectorizer

    settings: dict[str, Any] = {"analyzer": "char", "sublinear_tf": True, "dtype": np.float32}
    settings["ngram_range"] = (1, params.max_ngram)
    try:
        return TfidfVectorizer(**settings, min_df=params.min_df).fit(texts)
    except ValueError:  # no n-gram is left: videos without text are legal, and say nothing
        return TfidfVectorizer(**settings, vocabulary=[" "]).fit(texts)


def linear_scores(
    train: "csr_matrix", labels: np.ndarray, others: "Sequence[csr_matrix]", n_classes: int, regularization: float
) -> list[np.ndarray]:
    """Decision values (N, n_classes) for each of `others`; a class without training videos scores below all others."""
    from sklearn.svm import LinearSVC

    classes = np.unique(labels)
    if len(classes) == 1:
        return [one_hot_rows(other.shape[0], classes[0], n_classes) for other in others]
    svm = LinearSVC(C=regularization, dual="auto", random_state=0).fit(train, labels)
    return [spread(svm.decision_function(other), classes, n_classes) for other in others]


def spread(values: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Columns of the classes present -> all columns. Two classes come as one: negative first, positive second."""
    if values.ndim == 1:
        values = np.stack([-values, values], axis=1)
    scores = np.full((len(values), n_classes), values.min(initial=0.0) - 1)
    scores[:, classes] = values
    return scores


def one_hot_rows(n: int, label: int, n_classes: int) -> np.ndarray:
    return np.tile(np.eye(n_classes)[label], (n, 1))
