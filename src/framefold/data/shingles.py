"""Texts as sets of hashed character shingles on disk, with MinHash keys that bring similar texts together.

Broder, "On the resemblance and containment of documents" (1997); bands as in Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3.
"""

import re
from pathlib import Path

import numpy as np

LENGTH = 2  # characters of a shingle; Chinese words mostly have two
MAX_SHINGLES = 512  # kept of a text, the smallest hashes: from there on the Jaccard similarity is an estimate
STRICT_BANDS, STRICT_ROWS = 8, 4  # find 98 % of the pairs at similarity 0.8, and 1 in 1,000 at 0.1
LOOSE_BANDS, LOOSE_ROWS = 16, 2  # find 94 % at 0.4, and 15 % at 0.1: to be confirmed by a frame
PERMUTATIONS = 32
BATCH = 1024  # rows whose keys are written together
NOISE = re.compile(r"[\W_]+")  # spaces, punctuation, emoji

MIX = np.uint64(0x9E3779B97F4A7C15)
# h -> (m h + a) mod 2^64 with odd m; arbitrary constants, fixed because groups depend on them.
MULTIPLIERS = (np.arange(1, PERMUTATIONS + 1, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)) ** 3 | np.uint64(1)
ADDENDS = (np.arange(1, PERMUTATIONS + 1, dtype=np.uint64) * np.uint64(0x94D049BB133111EB)) ** 3


def shingle_set(text: str) -> np.ndarray:
    """Sorted, distinct uint32 hashes of the shingles of a text, case and punctuation ignored."""
    points = np.frombuffer(NOISE.sub("", text.lower()).encode("utf-32-le"), np.uint32).astype(np.uint64)
    if len(points) < LENGTH:
        return np.zeros(0, np.uint32)
    mixed = points[: len(points) - LENGTH + 1]
    for shift in range(1, LENGTH):
        mixed = (mixed * MIX) ^ points[shift : len(points) - LENGTH + 1 + shift]
    mixed = mixed * MIX
    return np.unique(((mixed ^ (mixed >> np.uint64(29))) * MIX >> np.uint64(32)).astype(np.uint32))[:MAX_SHINGLES]


def minhash(shingles: np.ndarray) -> np.ndarray:
    """uint32 [PERMUTATIONS]: per random permutation the least element."""
    permuted = shingles.astype(np.uint64)[:, None] * MULTIPLIERS + ADDENDS
    return (permuted >> np.uint64(32)).min(axis=0).astype(np.uint32)


def band_keys(signature: np.ndarray) -> np.ndarray:
    """uint32 [STRICT_BANDS + LOOSE_BANDS]: texts that share a key agree on all rows of that band."""
    keys = []
    for bands, rows in ((STRICT_BANDS, STRICT_ROWS), (LOOSE_BANDS, LOOSE_ROWS)):
        key = np.zeros(bands, np.uint64)
        for column in signature.astype(np.uint64).reshape(bands, rows).T:
            key = (key ^ column) * MIX
            key ^= key >> np.uint64(31)
        keys.append((key >> np.uint64(32)).astype(np.uint32))
    return np.concatenate(keys)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two shingle sets; where one was cut, estimated from the smallest hashes of their union."""
    if len(a) == 0 or len(b) == 0:
        return 0.0
    union = np.union1d(a, b)
    if max(len(a), len(b)) == MAX_SHINGLES:
        union = union[:MAX_SHINGLES]
        a, b = a[a <= union[-1]], b[b <= union[-1]]
    common = len(a) + len(b) - len(np.union1d(a, b))
    return common / len(union)


class ShingleWriter:
    """Appends texts, row by row, to the folder that a ShingleStore reads; nothing is kept in memory."""

    def __init__(self, folder: Path):
        self.folder, self.rows = folder, 0
        self.sets = open(folder / "sets", "wb")  # noqa: SIM115 - closed by close()
        self.counts = open(folder / "counts", "wb")  # noqa: SIM115
        self.bands = [open(folder / f"band-{band}", "wb") for band in range(STRICT_BANDS + LOOSE_BANDS)]  # noqa: SIM115
        self.keys = np.zeros((BATCH, len(self.bands)), np.uint32)

    def add(self, text: str) -> None:
        shingles = shingle_set(text)
        self.sets.write(shingles.tobytes())
        self.counts.write(np.uint16(len(shingles)).tobytes())
        self.keys[self.rows % BATCH] = band_keys(minhash(shingles)) if len(shingles) else 0
        self.rows += 1
        if self.rows % BATCH == 0:
            self.flush(BATCH)

    def flush(self, rows: int) -> None:
        for file, keys in zip(self.bands, self.keys[:rows].T, strict=True):
            file.write(keys.tobytes())

    def close(self) -> None:
        self.flush(self.rows % BATCH)
        for file in (self.sets, self.counts, *self.bands):
            file.close()


class ShingleStore:
    """Reads what a ShingleWriter wrote: 10 bytes a row in memory, and one band at a time on request."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.counts = np.fromfile(folder / "counts", np.uint16)
        self.ends = np.cumsum(self.counts, dtype=np.int64)
        self.sets = open(folder / "sets", "rb")  # noqa: SIM115 - held for the life of the reader

    def band(self, number: int) -> np.ndarray:
        """uint32 [rows]; meaningless where `counts` is 0. The strict bands come first."""
        return np.fromfile(self.folder / f"band-{number}", np.uint32)

    def shingles(self, row: int) -> np.ndarray:
        count = int(self.counts[row])
        self.sets.seek((int(self.ends[row]) - count) * 4)
        return np.frombuffer(self.sets.read(4 * count), np.uint32)

    def similarity(self, a: int, b: int) -> float:
        return jaccard(self.shingles(a), self.shingles(b))

    def close(self) -> None:
        self.sets.close()
