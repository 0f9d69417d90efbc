"""`pseudo_label`: soft labels from the teachers."""

from typing import ClassVar, Literal

from pydantic import PositiveInt, field_validator

from framefold.params.base import Group


class PseudoLabelParams(Group):
    key: ClassVar[str] = "pseudo_label"
    # who labels for the final round: models/teacher, or the students of an earlier one, models/rounds/<name>/swa
    teachers: str
    # of the teachers' softmax; fitted: that of the least negative log-likelihood out of fold
    temperature: Literal["fitted"] | float
    batch_size: PositiveInt
    # neighbours: a vote of the labelled videos that are nearest in a teacher's states; both: the mean of the two
    source: Literal["teachers", "neighbours", "both"]
    k: PositiveInt  # neighbours that vote
    leaky: bool  # true: no safeguard at all, to see what it does to the estimates; never for results

    @field_validator("temperature")
    @classmethod
    def above_zero(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and not value > 0:
            raise ValueError("give a number above 0, or fitted")
        return value


def temperature_problem(params: PseudoLabelParams, students_label: bool, per_fold: bool) -> str | None:
    """Why a temperature could not be fitted; `per_fold` is that of `pretrain`."""
    if params.temperature != "fitted" or not students_label or per_fold:
        return None
    return (
        "pseudo_label.temperature is fitted on predictions out of fold, but the students that label have learned "
        "labels of those videos; give a number, or set pretrain.per_fold=true"
    )
