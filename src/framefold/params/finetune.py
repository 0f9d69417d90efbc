"""`finetune`: students on the true labels."""

from typing import ClassVar, Literal

from pydantic import PositiveInt

from framefold.params.base import Group
from framefold.params.supervised import SupervisedParams


class CheckpointParams(Group):
    """Which EMA checkpoints (one per epoch) are kept for weight averaging."""

    keep: PositiveInt
    select: Literal["last", "top"]  # top: by fold score, optimistic


class FinetuneParams(SupervisedParams):
    key: ClassVar[str] = "finetune"
    checkpoints: CheckpointParams
