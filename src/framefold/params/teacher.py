"""`teacher`: a larger single-stream model, cross-fitted, that labels the unlabelled pool."""

from typing import ClassVar

from pydantic import Field

from framefold.params.base import Group
from framefold.params.models import InputParams, SingleStreamParams, TextModelParams
from framefold.params.supervised import SupervisedParams


class TeacherParams(Group):
    key: ClassVar[str] = "teacher"
    encoder: str
    n_folds: int = Field(ge=2)  # teacher fold of a video: its student fold modulo n_folds
    folds: list[int]  # those that are trained
    inputs: InputParams
    text: TextModelParams
    model: SingleStreamParams
    training: SupervisedParams
