"""What the training loop is given: a task and the batches of an epoch."""

from typing import Protocol, Self, runtime_checkable

from torch import Tensor, nn

from framefold.training.sharing import Share

Batch = dict[str, Tensor]


class Task(Protocol):
    """A model and its loss on a batch. `model` holds every trained parameter, temporary heads included."""

    model: nn.Module

    def loss(self, batch: Batch, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        """(total, parts): scalars whose mean over the processes, weighted by samples, is that of the global batch, of
        which `batch` is a `share`; parts with the same names at every step.

        Called under autocast. A task that compares the samples of a batch with each other (in-batch negatives) sets
        `whole_batch = True`: its batches are never split into micro-batches. One whose loss has a memory sets
        `once_a_step = True`: it must be asked once for each batch, so there is no adversary.
        """
        ...

    def role_of(self, name: str) -> str:
        """Learning-rate role of the parameter `name` of `model`."""
        ...


@runtime_checkable
class UsesAverage(Protocol):
    """A task whose loss asks the EMA of its own model (a mean teacher, a momentum encoder): the loop puts it here.

    It is the trained model itself where there is no EMA. Never a submodule of `model`: it has no gradients, and its
    weights would be saved twice.
    """

    average: nn.Module | None


class Batches(Protocol):
    """One epoch: batch i is the same whenever and wherever it is asked for. Every epoch has the same samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch: ...

    def global_size(self, index: int) -> int:
        """Samples of batch `index` over all processes."""
        ...

    def names(self, index: int) -> list[str]:
        """What a person calls the samples of this process's part of batch `index`."""
        ...

    def shard(self, rank: int, world: int) -> Self:
        """This process's part of every batch."""
        ...
