"""`reweight`: class weights `1 + a / n_c^b` on the probabilities."""

from typing import ClassVar

from pydantic import Field

from framefold.params.base import Group


class ReweightParams(Group):
    key: ClassVar[str] = "reweight"
    a: list[float] = Field(min_length=1)  # grid; 0 is always tried
    b: list[float] = Field(min_length=1)
    cross_fit_folds: int = Field(ge=2)
    min_gain: float = Field(ge=0)  # cross-fitted gain below which the weights stay 1
    seed: int
