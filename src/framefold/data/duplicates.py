"""Duplicate groups: videos that are the same, or say the same, must never stand on both sides of a split.

Two videos are duplicates when
  1. their texts (title and screen text) have a Jaccard similarity of at least `text_similarity`, both long enough, or
  2. the hashes of their first and of their last frames both differ by at most `frame_distance` bits, or
  3. their texts have at least `weak_text_similarity` and one of the two frames is within `weak_frame_distance`;
a group is what such pairs connect. Candidates share a hash key; a key that more than `max_bucket` videos share is
boilerplate. (Rule 2 finds every pair up to PIECES - AGREEING bits, and most of those a little beyond.)
"""

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise

import numpy as np

from framefold.data.frame_hashes import BITS
from framefold.data.shingles import LOOSE_BANDS, STRICT_BANDS, ShingleStore
from framefold.params.ingest import DuplicateParams

# A frame hash is cut in PIECES; two hashes within PIECES - AGREEING bits agree on AGREEING pieces at least.
PIECES, AGREEING = 9, 3
MIX = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 1 << 16  # rows or pairs looked at together
LOW = np.uint64(0xFFFFFFFF)
GUARDED = 1024  # comparisons of texts between two looks at the guard
Guard = Callable[[], None]


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
        for start in range(0, len(self.parent), BLOCK):
            part = self.parent[start : start + BLOCK]
            while not np.array_equal(up := self.parent[part], part):
                part[:] = up
        return self.parent


def group_duplicates(
    texts: ShingleStore,
    hashes: np.ndarray,
    hashed: np.ndarray,
    kept: np.ndarray,
    params: DuplicateParams,
    guard: Guard,
) -> np.ndarray:
    """int32 [n]: the smallest row of each row's group; rows that are not `kept` stand alone.

    `hashes` uint64 [n, 2] and `hashed` bool [n, 2] are those of the first and last frame, `kept` bool [n]. `guard` runs
    now and then; what it raises stops the work.
    """
    groups = Groups(len(kept))
    usable = hashed & kept[:, None]
    join_by_frames(groups, hashes, usable, params, guard)
    join_by_text(groups, texts, kept, params, guard)
    join_by_both(groups, texts, hashes, usable, params, guard)
    return groups.roots()


def join_by_frames(
    groups: Groups, hashes: np.ndarray, hashed: np.ndarray, params: DuplicateParams, guard: Guard
) -> None:
    rows = rows_where(hashed[:, 0] & hashed[:, 1])
    for mask in piece_masks():
        guard()
        for a, b in candidate_pairs(piece_keys(hashes, rows, mask), rows, params.max_bucket):
            near = (distance(hashes[a], hashes[b]) <= params.frame_distance).all(axis=1)
            for pair in zip(a[near].tolist(), b[near].tolist(), strict=True):
                groups.union(*pair)


def rows_where(mask: np.ndarray) -> np.ndarray:
    """int32: numpy's own answer would take twice the memory."""
    return np.concatenate(
        [
            np.flatnonzero(mask[start : start + BLOCK]).astype(np.int32) + np.int32(start)
            for start in range(0, max(len(mask), 1), BLOCK)
        ]
    )


def piece_keys(hashes: np.ndarray, rows: np.ndarray, mask: np.uint64) -> np.ndarray:
    """uint32 [rows]: equal where the first frames agree on the mask."""
    keys = np.empty(len(rows), np.uint32)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        keys[part] = (hashes[rows[part], 0] & mask) * MIX >> np.uint64(32)
    return keys


def piece_masks() -> list[np.uint64]:
    """One mask of a hash for each choice of AGREEING pieces."""
    borders = [BITS * piece // PIECES for piece in range(PIECES + 1)]
    pieces = [(1 << high) - (1 << low) for low, high in pairwise(borders)]
    return [np.uint64(sum(chosen)) for chosen in combinations(pieces, AGREEING)]


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b)


def join_by_text(groups: Groups, texts: ShingleStore, kept: np.ndarray, params: DuplicateParams, guard: Guard) -> None:
    rows = rows_where(kept & (texts.counts >= params.min_shingles))
    for band in range(STRICT_BANDS):
        guard()
        for a, b in candidate_pairs(texts.band(band)[rows], rows, params.max_bucket):
            join_similar(groups, texts, a, b, params.text_similarity, guard)


def join_by_both(
    groups: Groups, texts: ShingleStore, hashes: np.ndarray, hashed: np.ndarray, params: DuplicateParams, guard: Guard
) -> None:
    rows = rows_where((texts.counts > 0) & hashed.any(axis=1))
    for band in range(STRICT_BANDS, STRICT_BANDS + LOOSE_BANDS):
        guard()
        for a, b in candidate_pairs(texts.band(band)[rows], rows, params.max_bucket):
            near = distance(hashes[a], hashes[b]) <= params.weak_frame_distance
            near = (near & hashed[a] & hashed[b]).any(axis=1)
            join_similar(groups, texts, a[near], b[near], params.weak_text_similarity, guard)


def join_similar(groups: Groups, texts: ShingleStore, a: np.ndarray, b: np.ndarray, least: float, guard: Guard) -> None:
    apart = groups.parent[a] != groups.parent[b]  # most of the joined pairs go at once
    a, b = a[apart], b[apart]
    for number, (left, right) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        if number % GUARDED == GUARDED - 1:
            guard()
        if groups.find(left) != groups.find(right) and texts.similarity(left, right) >= least:
            groups.union(left, right)


def candidate_pairs(keys: np.ndarray, rows: np.ndarray, max_bucket: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of row pairs (a, b) that share a key, from keys that 2 to `max_bucket` rows share. keys, rows: [n].

    Memory: 17 bytes a row, and once more as much for each row that shares its key.
    """
    keys, rows = shared_keys(keys, rows, max_bucket)
    for gap in range(1, max_bucket):
        left = np.flatnonzero(keys[:-gap] == keys[gap:]).astype(np.int32)
        if len(left) == 0:
            return
        for start in range(0, len(left), BLOCK):
            part = left[start : start + BLOCK]
            yield rows[part], rows[part + gap]


def shared_keys(keys: np.ndarray, rows: np.ndarray, max_bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """The uint32 keys that 2 to `max_bucket` rows share, and those rows (int32), sorted by key, then by row."""
    packed = keys.astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= rows.astype(np.uint32)
    packed.sort()
    shared = np.zeros(len(packed), bool)
    shared[1:] = (packed[1:] ^ packed[:-1]) <= LOW
    shared[:-1] |= shared[1:]
    packed = packed[shared]
    keys = (packed >> np.uint64(32)).astype(np.uint32)
    borders = np.flatnonzero(np.diff(keys, prepend=keys[:1] ^ 1, append=keys[-1:] ^ 1))
    sizes = np.diff(borders)
    in_range = np.repeat(sizes <= max_bucket, sizes)
    return keys[in_range], (packed[in_range] & LOW).astype(np.int32)
