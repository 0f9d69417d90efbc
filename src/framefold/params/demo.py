"""`demo`: sizes of the generated data set. The generative model itself is documented in framefold/data/demo."""

from typing import ClassVar

from pydantic import Field, PositiveInt, model_validator

from framefold.params.base import Group


class DemoParams(Group):
    key: ClassVar[str] = "demo"
    seed: int
    labeled: PositiveInt
    unlabeled: PositiveInt
    test: PositiveInt
    groups: PositiveInt  # level-1
    categories: PositiveInt  # level-2
    smallest_class: PositiveInt  # labelled samples of the rarest class
    min_frames: PositiveInt
    max_frames: PositiveInt
    frame_size: PositiveInt  # pixels
    label_noise: float = Field(ge=0, lt=1)

    @model_validator(mode="after")
    def in_order(self) -> "DemoParams":
        if self.min_frames > self.max_frames:
            raise ValueError(f"min_frames is {self.min_frames}, above max_frames, {self.max_frames}")
        return self
