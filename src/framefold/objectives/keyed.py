"""Random numbers keyed by video: the same in every process and batch, for any number of workers or ranks."""

import enum

import numpy as np
import numpy.typing as npt


class Stream(enum.IntEnum):
    """Independent streams of one video in one epoch."""

    PLACES = 1
    LENGTHS = 2
    COUNT = 3
    FATE = 4
    TOKENS = 5
    FRAMES = 6
    HARD = 7
    PARTNER = 8
    DROP = 9


def uniforms(stream: Stream, seed: int, epoch: int, keys: npt.NDArray[np.int64], width: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), (B, width): a hash of (stream, seed, epoch, key, position). keys (B,) int64."""
    row = np.asarray(keys).astype(np.uint64)
    for part in (seed, epoch, int(stream)):
        row = _scramble(row ^ np.uint64(part & 0xFFFFFFFFFFFFFFFF))
    bits = _scramble(row[:, None] + np.arange(1, width + 1, dtype=np.uint64)[None] * np.uint64(0xD1B54A32D192ED03))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _scramble(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One step of SplitMix64 (Steele et al. 2014): a bijection of 64 bits."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
