"""`pseudo_label`: soft labels from the teachers."""

from typing import ClassVar

from pydantic import Field, PositiveInt

from framefold.params.base import Group


class PseudoLabelParams(Group):
    key: ClassVar[str] = "pseudo_label"
    temperature: float = Field(gt=0)  # of the teachers' softmax
    batch_size: PositiveInt
