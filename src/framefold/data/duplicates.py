"""Duplicate groups: videos that are the same, or say the same, must never stand on both sides of a split.

Two videos are duplicates when
  1. their texts (title and screen text) have a Jaccard similarity of at least `text_similarity`, both long enough, or
  2. the hashes of their first and of their last frames both differ by at most `frame_distance` bits, or
  3. their texts have at least `weak_text_similarity` and one of the two frames is within `weak_frame_distance`;
a group is what such pairs connect. Candidates share a hash key; a key that more than `max_bucket` videos share is
boilerplate. (Rule 2 finds every pair up to PIECES - AGREEING bits, and most of those a little beyond.)
"""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np

from framefold.data.frame_hashes import BITS
from framefold.data.shingles import LOOSE_BANDS, STRICT_BANDS, ShingleStore
from framefold.params.ingest import DuplicateParams

# A frame hash is cut in PIECES; two hashes within PIECES - AGREEING bits agree on AGREEING pieces at least.
PIECES, AGREEING = 9, 3
MIX = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 1 << 16  # pairs looked at together


class Groups:
    """Union-find over rows, 4 bytes each; the smallest row stands for its group."""

    def __init__(self, n: int):
        self.parent = np.arange(n, dtype=np.int32)

    def find(self, row: int) -> int:
        parent = self.parent
        while (up := int(parent[row])) != row:
            parent[row] = parent[up]
            row = up
        return row

    def union(self, a: int, b: int) -> None:
        a, b = sorted((self.find(a), self.find(b)))
        self.parent[b] = a

    def roots(self) -> np.ndarray:
        """int32 [n]: the smallest row of each row's group."""
        while not np.array_equal(up := self.parent[self.parent], self.parent):
            self.parent = up
        return self.parent


def group_duplicates(
    texts: ShingleStore, hashes: np.ndarray, hashed: np.ndarray, kept: np.ndarray, params: DuplicateParams
) -> np.ndarray:
    """int32 [n]: the smallest row of each row's group; rows that are not `kept` stand alone.

    `hashes` uint64 [n, 2] and `hashed` bool [n, 2] are those of the first and last frame, `kept` bool [n].
    """
    groups = Groups(len(kept))
    join_by_frames(groups, hashes, hashed & kept[:, None], params)
    join_by_text(groups, texts, kept, params)
    join_by_both(groups, texts, hashes, hashed & kept[:, None], params)
    return groups.roots()


def join_by_frames(groups: Groups, hashes: np.ndarray, hashed: np.ndarray, params: DuplicateParams) -> None:
    rows = np.flatnonzero(hashed.all(axis=1)).astype(np.int32)
    for mask in piece_masks():
        keys = ((hashes[rows, 0] & mask) * MIX >> np.uint64(32)).astype(np.uint32)
        for a, b in candidate_pairs(keys, rows, params.max_bucket):
            near = (distance(hashes[a], hashes[b]) <= params.frame_distance).all(axis=1)
            for pair in zip(a[near].tolist(), b[near].tolist(), strict=True):
                groups.union(*pair)


def piece_masks() -> list[np.uint64]:
    """One mask of a hash for each choice of AGREEING pieces."""
    borders = [BITS * piece // PIECES for piece in range(PIECES + 1)]
    pieces = [(1 << high) - (1 << low) for low, high in pairwise(borders)]
    return [np.uint64(sum(chosen)) for chosen in combinations(pieces, AGREEING)]


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b)


def join_by_text(groups: Groups, texts: ShingleStore, kept: np.ndarray, params: DuplicateParams) -> None:
    rows = np.flatnonzero(kept & (texts.counts >= params.min_shingles)).astype(np.int32)
    for band in range(STRICT_BANDS):
        for a, b in candidate_pairs(texts.band(band)[rows], rows, params.max_bucket):
            join_similar(groups, texts, a, b, params.text_similarity)


def join_by_both(
    groups: Groups, texts: ShingleStore, hashes: np.ndarray, hashed: np.ndarray, params: DuplicateParams
) -> None:
    rows = np.flatnonzero(hashed.any(axis=1) & (texts.counts > 0)).astype(np.int32)
    for band in range(STRICT_BANDS, STRICT_BANDS + LOOSE_BANDS):
        for a, b in candidate_pairs(texts.band(band)[rows], rows, params.max_bucket):
            near = distance(hashes[a], hashes[b]) <= params.weak_frame_distance
            near = (near & hashed[a] & hashed[b]).any(axis=1)
            join_similar(groups, texts, a[near], b[near], params.weak_text_similarity)


def join_similar(groups: Groups, texts: ShingleStore, a: np.ndarray, b: np.ndarray, least: float) -> None:
    for left, right in zip(a.tolist(), b.tolist(), strict=True):
        if groups.find(left) != groups.find(right) and texts.similarity(left, right) >= least:
            groups.union(left, right)


def candidate_pairs(keys: np.ndarray, rows: np.ndarray, max_bucket: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of row pairs (a, b) that share a key, from keys that 2 to `max_bucket` rows share. keys, rows: [n]."""
    order = np.argsort(keys, kind="stable").astype(np.int32)
    keys, rows = keys[order], rows[order]
    borders = np.flatnonzero(np.diff(keys, prepend=keys[:1] ^ 1, append=keys[-1:] ^ 1)).astype(np.int32)
    sizes = np.diff(borders)
    in_range = np.repeat((sizes > 1) & (sizes <= max_bucket), sizes)
    keys, rows = keys[in_range], rows[in_range]
    for gap in range(1, max_bucket):
        left = np.flatnonzero(keys[:-gap] == keys[gap:]).astype(np.int32)
        if len(left) == 0:
            return
        for start in range(0, len(left), BLOCK):
            part = left[start : start + BLOCK]
            yield rows[part], rows[part + gap]
