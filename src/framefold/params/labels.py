"""`labels` blocks: how training uses the soft labels of the pool."""

from pydantic import Field

from framefold.params.base import Group


class LabelParams(Group):
    hard: float = Field(ge=0, le=1)  # share of the loss whose target is one-hot on the best class; the rest is soft
    temperature: float = Field(gt=0)  # of teacher and student in the soft part
    min_confidence: float = Field(ge=0, lt=1)  # best probability below which a label is not learned
    balance: float = Field(ge=0, le=1)  # a class of n labels counts ~ n^(1 - balance); 0: as they come

    @property
    def plain(self) -> bool:
        """Whether the loss is the cross-entropy with the stored soft labels themselves."""
        return self.hard == 0 and self.temperature == 1 and self.min_confidence == 0 and self.balance == 0
