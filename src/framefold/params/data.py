"""`data`: where the videos are."""

from typing import ClassVar

from framefold.params.base import Group


class DataParams(Group):
    key: ClassVar[str] = "data"
    root: str  # folder in the official layout, relative to the project's root
    generated: list[str]  # [demo]: the stage demo_data builds `root`; []: your own data
    categories: str | None  # text file with one category id (LLSS) a line; null: the ids seen in labeled.json
