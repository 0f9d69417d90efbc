"""The order of samples in an epoch, and where its batches are cut: like lengths stand together, so little is padded."""

import numpy as np
import numpy.typing as npt

TEXT_STEP = 8  # lengths that differ by less count as equal, so that frame counts are sorted too


def length_keys(
    text: npt.NDArray[np.integer], frames: npt.NDArray[np.integer], max_frames: int
) -> npt.NDArray[np.integer]:
    """By text length in steps, then frames, then exact text length: neither is padded much in a batch."""
    return (text // TEXT_STEP * (max_frames + 1) + frames) * TEXT_STEP + text % TEXT_STEP


def bucketed_order(
    keys: npt.NDArray[np.integer], bucket: int, rng: np.random.Generator | None, turning: bool = False
) -> npt.NDArray[np.int64]:
    """(N,) positions: shuffled, then sorted by key within each run of `bucket`; without rng all sorted by key.

    `turning`: every second run descends, so that like keys stand on both sides of a boundary.
    """
    if rng is None:
        return np.argsort(keys, kind="stable")
    order = rng.permutation(len(keys))
    for number, start in enumerate(range(0, len(order), bucket)):
        part = order[start : start + bucket]
        ordered = part[np.argsort(keys[part], kind="stable")]
        order[start : start + bucket] = ordered[::-1] if turning and number % 2 else ordered
    return order


def token_cuts(sizes: npt.NDArray[np.integer], most: int, tokens: int, least: int) -> npt.NDArray[np.int64]:
    """(batches + 1,) cuts of samples of `sizes` (N, 2) into runs that keep to a budget, padding included.

    A run takes samples while it has at most `most` and samples x (longest text + most frames) is at most `tokens`. It
    has `least` whatever they cost, so a sample above the budget stands alone. The last two share their samples evenly
    where the budget allows it.
    """
    cuts = [0]
    while cuts[-1] < len(sizes):
        longest = np.maximum.accumulate(sizes[cuts[-1] : cuts[-1] + most]).sum(axis=1)  # grows with the run
        fitting = int(np.count_nonzero(np.arange(1, len(longest) + 1) * longest <= tokens))
        cuts.append(min(cuts[-1] + max(fitting, least, 1), len(sizes)))
    if len(cuts) > 2:
        middle = (cuts[-3] + cuts[-1]) // 2
        halves = sizes[cuts[-3] : middle], sizes[middle : cuts[-1]]
        if all(len(half) >= least and len(half) * half.max(axis=0).sum() <= tokens for half in halves):
            cuts[-2] = middle
        if cuts[-1] - cuts[-2] < least:  # too few for the processes: one run
            del cuts[-2]
    return np.array(cuts, dtype=np.int64)
