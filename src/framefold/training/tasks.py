"""What the training loop is given: a model and its loss on a batch (see `protocols.Task`)."""

from typing import Any

from torch import Tensor

from framefold.objectives.classification import accuracy, cross_entropy
from framefold.objectives.distillation import agreement, distillation_loss
from framefold.params.labels import LabelParams
from framefold.training.pretraining import PretrainingModel
from framefold.training.protocols import Batch
from framefold.training.sharing import Share

Parts = dict[str, Tensor]


class ClassificationTask:
    """Teachers and students on labels, by cross-entropy alone.

    `supervised.SupervisedTask` is for all that may come on top of it.
    """

    def __init__(self, model: Any, label_smoothing: float):
        self.model, self.label_smoothing = model, label_smoothing

    def loss(self, batch: Batch, share: Share) -> tuple[Tensor, Parts]:
        logits = self.model(batch)  # (B, C)
        parts = {"accuracy": accuracy(logits, batch["label"])}
        return cross_entropy(logits, batch["label"], self.label_smoothing), parts

    def role_of(self, name: str) -> str:
        return self.model.role_of(name)


class DistillationTask:
    """Students on soft labels, of which every video of a batch has one."""

    def __init__(self, model: Any, labels: LabelParams):
        self.model, self.labels = model, labels

    def loss(self, batch: Batch, share: Share) -> tuple[Tensor, Parts]:
        logits, soft = self.model(batch), batch["soft"]  # (B, C), (B, C)
        parts = {"teacher_agreement": agreement(logits, soft, len(soft))}
        settings = {"hard": self.labels.hard, "temperature": self.labels.temperature}
        return distillation_loss(logits, soft, len(soft), **settings), parts

    def role_of(self, name: str) -> str:
        return self.model.role_of(name)


class PretrainingTask:
    """Students on the unlabelled pool."""

    whole_batch = True  # matching, contrast and frame prediction compare the videos of a batch
    once_a_step = True  # a batch joins the queue of the contrast

    def __init__(self, model: PretrainingModel):
        self.model: Any = model
        self._average: Any = None

    @property
    def average(self) -> Any:
        """The EMA, momentum encoder of the contrast; without dropout."""
        return self._average

    @average.setter
    def average(self, model: Any) -> None:
        self._average = model if model is self.model else model.eval()

    def loss(self, batch: Batch, share: Share) -> tuple[Tensor, Parts]:
        return self.model(batch, share, self.average)

    def role_of(self, name: str) -> str:
        return self.model.role_of(name)
