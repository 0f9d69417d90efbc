"""`reweight`: class weights on the probabilities, for the long tail."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from framefold.params.base import Group


class ReweightParams(Group):
    key: ClassVar[str] = "reweight"
    # none; formula: 1 + a / n_c^b; logit_adjustment: prior_c^-tau; search: each class's weight by coordinate ascent
    method: Literal["none", "formula", "logit_adjustment", "search"]
    a: list[float] = Field(min_length=1)  # formula, grid; 0 is always tried
    b: list[float] = Field(min_length=1)
    tau: list[float] = Field(min_length=1)  # logit_adjustment, grid; 0 is always tried
    bound: float = Field(gt=0)  # search: largest |log weight|
    steps: PositiveInt  # search: values tried between 1 and the bound, on either side
    sweeps: PositiveInt  # search: times over all classes, at most
    cross_fit_folds: int = Field(ge=2)
    min_gain: float | None = Field(ge=0)  # cross-fitted gain up to which the weights stay 1; None: they never do
    seed: int
