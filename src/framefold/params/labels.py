"""`labels` blocks: how training uses the soft labels of the pool."""

from pydantic import Field

from framefold.params.base import Group


class LabelParams(Group):
    hard: float = Field(ge=0, le=1)  # share of the target that is one-hot on the best class; the rest is soft
    temperature: float = Field(gt=0)  # of the soft part: p^(1 / T), normalised; below 1 sharper, above 1 softer
    min_confidence: float = Field(ge=0, lt=1)  # best probability below which a video counts as without label
    balance: float = Field(ge=0, le=1)  # a class of n labels counts ~ n^(1 - balance); 0: as they come

    @property
    def as_stored(self) -> bool:
        """Whether targets are the stored soft labels themselves."""
        return self.hard == 0 and self.temperature == 1 and self.min_confidence == 0
