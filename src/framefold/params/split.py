"""`split`: locked holdout and folds."""

from typing import ClassVar

from pydantic import Field

from framefold.params.base import Group


class SplitParams(Group):
    key: ClassVar[str] = "split"
    seed: int
    n_folds: int = Field(ge=2)
    holdout: float = Field(ge=0, lt=0.5)  # share of the labelled videos
