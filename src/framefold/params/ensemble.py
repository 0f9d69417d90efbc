"""`ensemble`: the blend and the intervals of every score."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from framefold.params.base import Group


class EnsembleParams(Group):
    key: ClassVar[str] = "ensemble"
    blend: Literal["probs", "logits"]
    fit_weights: bool  # false: equal weights
    bootstrap: PositiveInt  # resamples for the 95 % intervals
    seed: int
