"""Topics of tokens, from the pool's texts: .venv/bin/python -m pytest tests/test_topics.py"""

import numpy as np
from sklearn.feature_extraction.text import TfidfTransformer

from framefold.data.topics import count_tokens, token_vectors

VOCAB = 8


class Texts:
    """A token store of three segments a video."""

    def __init__(self, texts: list[list[int]]):
        self.texts = texts

    def segments(self, row: int) -> list[np.ndarray]:
        ids = np.array(self.texts[row], np.int64)
        return [ids[:1], ids[1:], ids[:0]]


def test_a_token_that_stands_twice_is_counted_twice_in_one_place():
    """Inverse document frequencies, dampened counts and unit length by hand, with the smoothing of scikit-learn."""
    texts = [[1, 2, 1, 1], [1, 3], [2, 3, 3, 3], [4]]
    counts = count_tokens(Texts(texts), np.arange(4), VOCAB)
    dense = np.array([np.bincount(text, minlength=VOCAB) for text in texts])
    assert np.array_equal(counts.toarray(), dense)
    tfidf = TfidfTransformer(sublinear_tf=True).fit(counts)
    idf = np.log((1 + 4) / (1 + (dense > 0).sum(axis=0))) + 1
    np.testing.assert_allclose(tfidf.idf_, idf, rtol=1e-6)
    weights = np.where(dense > 0, 1 + np.log(np.maximum(dense, 1)), 0) * idf
    np.testing.assert_allclose(
        tfidf.transform(counts).toarray(), weights / np.linalg.norm(weights, axis=1, keepdims=True), rtol=1e-6
    )


def test_repeating_a_token_within_its_videos_does_not_make_it_common():
    """Its inverse document frequency is that of the videos that have it: vectors keep their length order."""
    rng = np.random.default_rng(0)
    plain = [rng.choice(np.arange(1, VOCAB), 3, replace=False).tolist() for _ in range(60)]
    often = [text + [2] * 9 if 2 in text else text for text in plain]
    one, other = (token_vectors(Texts(texts), np.arange(60), VOCAB, 4, seed=0) for texts in (plain, often))
    norms = [np.linalg.norm(vectors[2]) / np.linalg.norm(vectors[1:], axis=1).mean() for vectors in (one, other)]
    assert norms[1] > 0.7 * norms[0]
