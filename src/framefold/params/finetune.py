"""`finetune`: students on the true labels."""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from framefold.params.base import Group
from framefold.params.labels import LabelParams
from framefold.params.supervised import SupervisedParams
from framefold.params.training import LearningRates


class CheckpointParams(Group):
    """Which EMA checkpoints (one per epoch) are kept for weight averaging."""

    keep: PositiveInt
    select: Literal["last", "top"]  # top: by fold score, optimistic


class PseudoPhaseParams(Group):
    """A first phase on the pool's soft labels, which the true labels then correct. Batches, decay, warm-up and EMA are
    as in `finetune`; its losses and adversary are for true labels."""

    epochs: NonNegativeInt  # 0: none
    batch_size: PositiveInt
    lr: LearningRates
    labels: LabelParams  # `balance` resamples


class VisionParams(Group):
    """End-to-end training of the students' vision tower."""

    lr: float = Field(ge=0)  # peak learning rate; 0: no tower in the student, features from the store
    min_crop: float = Field(gt=0, le=1)  # in training: area of a random crop, as a share of the largest square


class FinetuneParams(SupervisedParams):
    key: ClassVar[str] = "finetune"
    checkpoints: CheckpointParams
    pseudo: PseudoPhaseParams
    vision: VisionParams

    def peak_rates(self) -> dict[str, float]:
        return super().peak_rates() | {"vision": self.vision.lr}


def own_towers_problem(params: FinetuneParams, labels_later: bool) -> str | None:
    """Why students that train their own towers cannot be those that label in a later round."""
    if not params.vision.lr or not labels_later:
        return None
    return "finetune.vision.lr is above 0, but students with own towers do not label; set it to 0 or drop the rounds"
