"""Percentile bootstrap over samples, on counts of distinct outcomes instead of on the samples themselves.

Drawing N samples with replacement and counting each distinct outcome (truth, prediction) is one multinomial draw over
the outcomes, so that 1,000 resamples of 25,000 samples cost a few thousand numbers each.
"""

from collections.abc import Iterator

import numpy as np

COVERAGE = 0.95
BLOCK = 250  # resamples held in memory at once


def resampled_counts(counts: np.ndarray, resamples: int, seed: int, size: int | None = None) -> Iterator[np.ndarray]:
    """Blocks (<= BLOCK, U) of counts per outcome of `resamples` bootstrap samples; `counts` (U,) are those observed.

    size: samples in each; None: as many as were observed.
    """
    rng, n = np.random.default_rng(seed), int(counts.sum())
    for start in range(0, resamples, BLOCK):
        yield rng.multinomial(size or n, counts / n, size=min(BLOCK, resamples - start))


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The central 95 % of the resampled values."""
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
