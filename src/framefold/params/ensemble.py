"""`ensemble`: the blend and the intervals of every score."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from framefold.params.base import Group


class EnsembleParams(Group):
    key: ClassVar[str] = "ensemble"
    blend: Literal["probs", "logits"]
    # equal; simplex: searched; greedy: selection with replacement. Fitted ones stay only where they gain cross-fitted
    weights: Literal["equal", "simplex", "greedy"]
    bootstrap: PositiveInt  # resamples for the 95 % intervals
    seed: int
