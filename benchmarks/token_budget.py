"""Does a token budget pad less than batches of a fixed size? python benchmarks/token_budget.py (a few seconds)

On generated lengths in the shape of the full recipe (profiles/wechat.yaml): 200,000 videos with log-normal segments cut
at 86, 84 and 84 tokens, a tenth of the speech and screen texts empty, and 9 to 32 frames; real lengths will differ.
Prints samples a batch, the share of tokens and frames that are not padding, and what a batch holds with its padding.
"""

import numpy as np

from framefold.data import batches
from framefold.data.batches import EpochBatches
from framefold.data.order import length_keys

VIDEOS = 200_000


class Lengths:
    """Samples that are nothing but their lengths (N, 2): text, frames."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        segments = [
            self.segment(rng, *shape) for shape in ((40, 0.5, 86, 0.01), (150, 0.9, 84, 0.1), (120, 0.9, 84, 0.1))
        ]
        text = 1 + sum(segments) + sum((segment > 0).astype(np.int64) for segment in segments)
        frames = np.where(rng.random(VIDEOS) < 0.01, 0, np.minimum(8 + rng.geometric(1 / 20, VIDEOS), 32))
        self.lengths = np.stack([text, frames], axis=1)

    def segment(self, rng: np.random.Generator, median: int, spread: float, budget: int, empty: float) -> np.ndarray:
        tokens = np.exp(rng.normal(np.log(median), spread, VIDEOS)).astype(np.int64)
        return np.where(rng.random(VIDEOS) < empty, 0, np.minimum(tokens, budget))

    def __len__(self) -> int:
        return VIDEOS

    def sizes(self) -> np.ndarray:
        return self.lengths

    def order_keys(self) -> np.ndarray:
        text, frames = self.lengths.T
        return length_keys(text, frames, 32)

    def names(self, positions: np.ndarray) -> list[str]:
        return positions.astype(str).tolist()

    def batch(self, positions: np.ndarray, draw: object = None, part: slice = batches.ALL) -> batches.Batch:
        return {}


def report(samples: Lengths, title: str, batch_size: int, batch_tokens: int | None = None) -> None:
    epoch = EpochBatches(samples, batch_size, seed=0, epoch=0, batch_tokens=batch_tokens)
    parts = [samples.lengths[epoch.order[start:end]] for start, end in zip(epoch.cuts, epoch.cuts[1:], strict=False)]
    sizes = np.array([len(part) for part in parts])
    cost = sizes * np.array([part.max(axis=0).sum() for part in parts])
    fill, spread = samples.lengths.sum() / cost.sum(), cost.std() / cost.mean()
    print(
        f"{title:<46} samples {sizes.mean():5.1f} ({sizes.min()} to {sizes.max()})  fill {fill:.3f}"
        f"  tokens a batch {cost.mean():,.0f}, deviation {spread:.1%}, most {cost.max():,}"
    )


def main() -> None:
    samples = Lengths()
    tokens, frames = samples.lengths.mean(axis=0)
    budget = round(256 * (tokens + frames))
    print(f"mean length {tokens + frames:.0f}: {tokens:.0f} tokens and {frames:.0f} frames")
    report(samples, "batch_size 256", 256)
    batches.BUCKET *= 2  # as many samples sorted together as with batch_size 512
    report(samples, "batch_size 256, sorted in larger runs", 256)
    batches.BUCKET //= 2
    report(samples, f"batch_size 256, batch_tokens {budget:,}", 256, budget)
    report(samples, f"batch_size 512, batch_tokens {budget:,}", 512, budget)


if __name__ == "__main__":
    main()
