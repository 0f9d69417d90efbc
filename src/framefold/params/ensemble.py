"""`ensemble`: the blend and the intervals of every score."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from framefold.params.base import Group


class EnsembleParams(Group):
    key: ClassVar[str] = "ensemble"
    blend: Literal["probs", "logits"]
    # equal; simplex: searched; greedy: selection with replacement
    weights: Literal["equal", "simplex", "greedy"]
    min_gain: float | None = Field(ge=0)  # cross-fitted gain up to which equal ones stay; None: they never do
    bootstrap: PositiveInt  # resamples for the 95 % intervals
    seed: int
