"""`average_weights`: the average of a student's last checkpoints, and its predictions."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from framefold.params.base import Group


class AverageWeightsParams(Group):
    key: ClassVar[str] = "average_weights"
    # uniform: their mean; greedy: the best on the validation fold, then each that does not lower the mean's fold score
    method: Literal["uniform", "greedy"]
    last: PositiveInt  # how many of the kept checkpoints are averaged; 1: the final EMA weights alone
    batch_size: PositiveInt
