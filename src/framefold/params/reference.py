"""`reference`: the linear probe that the deep part must beat."""

from typing import ClassVar

from pydantic import Field, PositiveInt

from framefold.params.base import Group


class ReferenceParams(Group):
    key: ClassVar[str] = "reference"
    max_ngram: PositiveInt
    min_df: PositiveInt
    frame_weight: float = Field(gt=0)  # of the unit-length frame features beside unit-length TF-IDF
    regularization: float = Field(gt=0)  # LinearSVC's C
