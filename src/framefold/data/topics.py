"""Token vectors by latent semantic analysis: tokens of the same topics point the same way, without any label."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from framefold.data.folds import Folds, excluded_groups, read_test_groups
from framefold.data.samples import read_columns
from framefold.data.tokens import TokenStore

UNLABELED = Path("data/tokens/unlabeled.arrow")
MAX_VIDEOS = 100_000  # enough for stable topics; the matrix has one row per video
POWER_ITERATIONS = 4


def token_vectors(
    tokens: TokenStore, rows: npt.NDArray[np.integer], vocab_size: int, dim: int, seed: int
) -> npt.NDArray[np.float32]:
    """(vocab_size, dim), unit variance: the mean over a title's tokens is its place in the TF-IDF space's first axes.

    Fitted on all text segments of (at most MAX_VIDEOS of) the videos `rows`.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    chosen = np.random.default_rng(seed).permutation(rows)[:MAX_VIDEOS]
    counts = count_tokens(tokens, chosen, vocab_size)
    tfidf = TfidfTransformer(sublinear_tf=True).fit(counts)
    axes = min(dim, vocab_size - 1, len(chosen) - 1)
    svd = TruncatedSVD(axes, n_iter=POWER_ITERATIONS, random_state=seed).fit(tfidf.transform(counts))
    vectors = np.zeros((vocab_size, dim), np.float32)
    vectors[:, :axes] = svd.components_.T * tfidf.idf_[:, None]
    return vectors / max(float(vectors.std()), 1e-12)


def pool_rows(labeled: Folds) -> npt.NDArray[np.int64]:
    """Rows of the unlabelled pool but for the duplicates of holdout and test videos."""
    groups = read_columns("unlabeled", ["group"]).column("group").to_numpy()
    return np.flatnonzero(~np.isin(groups, excluded_groups(labeled, read_test_groups())))


def count_tokens(tokens: TokenStore, rows: npt.NDArray[np.integer], vocab_size: int):
    """Sparse (len(rows), vocab_size): how often each token stands in a video's text."""
    from scipy.sparse import csr_matrix

    texts = [np.concatenate(tokens.segments(row)) for row in rows.tolist()]
    ends = np.cumsum([0, *map(len, texts)])
    ids = np.concatenate(texts).astype(np.int32)
    counts = csr_matrix((np.ones(len(ids), np.float32), ids, ends), shape=(len(rows), vocab_size))
    counts.sum_duplicates()  # else a token that stands there twice is two entries of 1, which TfidfTransformer counts
    return counts
