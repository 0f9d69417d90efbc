"""Texts as sets of hashed character shingles on disk, with MinHash keys that bring similar texts together.

Broder, "On the resemblance and containment of documents" (1997); bands as in Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

LENGTH = 2  # characters of a shingle; Chinese words mostly have two
MAX_SHINGLES = 512  # kept of a text, the smallest hashes: from there on the Jaccard similarity is an estimate
STRICT_BANDS, STRICT_ROWS = 8, 4  # find 98 % of the pairs at similarity 0.8, and 1 in 1,000 at 0.1
LOOSE_BANDS, LOOSE_ROWS = 16, 2  # find 94 % at 0.4, and 15 % at 0.1: to be confirmed by a frame
PERMUTATIONS = 32
BATCH = 256  # texts hashed together
MARK = 64  # rows between two known places in the file of sets
NOISE = re.compile(r"[\W_]+")  # spaces, punctuation, emoji

MIX = np.uint64(0x9E3779B97F4A7C15)
# h -> (m h + a) mod 2^64 with odd m; arbitrary constants, fixed because groups depend on them.
MULTIPLIERS = (np.arange(1, PERMUTATIONS + 1, dtype=np.uint64) * np.uint64(0xBF58476D1CE4E5B9)) ** 3 | np.uint64(1)
ADDENDS = (np.arange(1, PERMUTATIONS + 1, dtype=np.uint64) * np.uint64(0x94D049BB133111EB)) ** 3


def shingle_sets(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted, distinct hashes of the shingles of each text, case and punctuation ignored.

    uint32 [sum of counts], text after text, and int64 [texts]: how many each has.
    """
    encoded = [NOISE.sub("", text.lower()).encode("utf-32-le") for text in texts]
    points = np.frombuffer(b"".join(encoded), np.uint32).astype(np.uint64)
    row = np.repeat(np.arange(len(texts), dtype=np.uint64), [len(part) // 4 for part in encoded])
    n = max(len(points) - LENGTH + 1, 0)
    mixed = points[:n]
    for shift in range(1, LENGTH):
        mixed = (mixed * MIX) ^ points[shift : n + shift]
    mixed = mixed * MIX
    hashes = (mixed ^ (mixed >> np.uint64(29))) * MIX >> np.uint64(32)
    within = row[:n] == row[LENGTH - 1 :]  # no shingle spans two texts
    keyed = distinct(np.sort((row[:n] << np.uint64(32) | hashes)[within]))
    return cut_sets(keyed, len(texts))


def cut_sets(keyed: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The MAX_SHINGLES smallest hashes of each of `n` rows; `keyed` is sorted uint64: row, then 32 bits of hash."""
    row = (keyed >> np.uint64(32)).astype(np.int64)
    counts = np.bincount(row, minlength=n)
    starts = np.cumsum(counts) - counts
    kept = np.arange(len(keyed)) - starts[row] < MAX_SHINGLES
    return keyed[kept].astype(np.uint32), np.minimum(counts, MAX_SHINGLES)


def distinct(ordered: np.ndarray) -> np.ndarray:
    """Each value of a sorted array once."""
    first = np.ones(len(ordered), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def minhashes(hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """uint32 [texts, PERMUTATIONS]: per random permutation the least element of each set; 0 where it is empty."""
    filled = counts > 0
    starts = (np.cumsum(counts) - counts)[filled]
    signatures, elements = np.zeros((len(counts), PERMUTATIONS), np.uint32), hashes.astype(np.uint64)
    if len(starts):
        for number, (multiplier, addend) in enumerate(zip(MULTIPLIERS, ADDENDS, strict=True)):
            least = np.minimum.reduceat(elements * multiplier + addend, starts)
            signatures[filled, number] = least >> np.uint64(32)
    return signatures


def band_keys(signatures: np.ndarray) -> np.ndarray:
    """uint32 [STRICT_BANDS + LOOSE_BANDS, texts]: texts that share a key agree on all rows of that band."""
    keys = []
    for bands, rows in ((STRICT_BANDS, STRICT_ROWS), (LOOSE_BANDS, LOOSE_ROWS)):
        parts = signatures.astype(np.uint64).reshape(-1, bands, rows)
        key = np.zeros(parts.shape[:2], np.uint64)
        for row in range(rows):
            key = (key ^ parts[:, :, row]) * MIX
            key ^= key >> np.uint64(31)
        keys.append((key >> np.uint64(32)).astype(np.uint32))
    return np.concatenate(keys, axis=1).T


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Similarity of two shingle sets; where one was cut, estimated from the smallest hashes of their union."""
    if len(a) == 0 or len(b) == 0:
        return 0.0
    both = np.sort(np.concatenate([a, b]))
    if max(len(a), len(b)) == MAX_SHINGLES:
        both = both[both <= distinct(both)[:MAX_SHINGLES][-1]]
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / (len(both) - common)


class ShingleWriter:
    """Appends texts, row by row, to the folder that a ShingleStore reads; a batch of texts is kept in memory."""

    def __init__(self, folder: Path):
        self.folder, self.texts = folder, list[str]()
        self.sets = open(folder / "sets", "wb")  # noqa: SIM115 - closed by close()
        self.counts = open(folder / "counts", "wb")  # noqa: SIM115
        self.bands = [open(folder / f"band-{band}", "wb") for band in range(STRICT_BANDS + LOOSE_BANDS)]  # noqa: SIM115

    def add(self, text: str) -> None:
        self.texts.append(text)
        if len(self.texts) == BATCH:
            self.flush()

    def flush(self) -> None:
        hashes, counts = shingle_sets(self.texts)
        self.sets.write(hashes.tobytes())
        self.counts.write(counts.astype(np.uint16).tobytes())
        for file, keys in zip(self.bands, band_keys(minhashes(hashes, counts)), strict=True):
            file.write(keys.tobytes())
        self.texts.clear()

    def close(self) -> None:
        self.flush()
        for file in (self.sets, self.counts, *self.bands):
            file.close()


class ShingleStore:
    """Reads what ShingleWriters wrote to some folders as one: 2 bytes a row in memory, and one band at a time."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = folders
        counts = [np.fromfile(folder / "counts", np.uint16) for folder in folders]
        self.counts = np.concatenate(counts)
        self.files = [open(folder / "sets", "rb") for folder in folders]  # noqa: SIM115 - held for the reader's life
        self.first_rows = [0, *accumulate(map(len, counts))][:-1]
        self.marks = [mark_places(part) for part in counts]

    def band(self, number: int) -> np.ndarray:
        """uint32 [rows]; meaningless where `counts` is 0. The strict bands come first."""
        return np.concatenate([np.fromfile(folder / f"band-{number}", np.uint32) for folder in self.folders])

    def shingles(self, row: int) -> np.ndarray:
        part = bisect_right(self.first_rows, row) - 1
        mark, past = divmod(row - self.first_rows[part], MARK)
        place = int(self.marks[part][mark]) + int(self.counts[row - past : row].sum(dtype=np.int64))
        self.files[part].seek(4 * place)
        return np.frombuffer(self.files[part].read(4 * int(self.counts[row])), np.uint32)

    def similarity(self, a: int, b: int) -> float:
        return jaccard(self.shingles(a), self.shingles(b))

    def close(self) -> None:
        for file in self.files:
            file.close()


def mark_places(counts: np.ndarray) -> np.ndarray:
    """int64: where the sets of every MARK-th row begin."""
    sums = np.add.reduceat(counts, np.arange(0, len(counts), MARK), dtype=np.int64)
    return np.cumsum(sums) - sums
