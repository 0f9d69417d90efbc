"""What the processes of one training exchange, so that N of them compute what one would on the same global batch.

Nothing here waits for the device: all shapes follow from the size of the global batch, which is known on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """One process's samples of a global batch: `own` of `total`. The parts of processes differ by one at most.

    done: share of the training's samples that came before this batch.
    """

    own: int
    total: int
    rank: int = 0
    world: int = 1
    done: float = 0.0

    @property
    def longest(self) -> int:
        """Samples of the largest part, to which `gather` pads."""
        return -(-self.total // self.world)

    def totals(self, counts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What this process divides its sums by for means over the global batch, from its own counts () of elements.

        The loop weighs a process's loss by its number of samples, so it is the global count times own / total. A count
        of none becomes one: sums over nothing are zero.
        """
        stacked = torch.stack([count.float() for count in counts])
        if self.world > 1:
            torch.distributed.all_reduce(stacked)
        return tuple((stacked.clamp(min=1) * (self.own / self.total)).unbind())

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (own, ...) of all processes in order of rank, with gradients to each, (world * longest, ...).

        A part with fewer than `longest` rows is filled with zeros: gather a mask beside it.
        """
        if self.world == 1:
            return rows
        missing = self.longest - len(rows)
        return _Gather.apply(F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing)), self.world)

    def gather_mask(self, mask: Tensor) -> Tensor:
        """`gather` for a mask (own, ...) bool; false where a part is filled."""
        return self.gather(mask.float()).bool() if self.world > 1 else mask

    @torch.no_grad()
    def gather_in_order(self, rows: Tensor) -> Tensor:
        """Rows (own, ...) of all processes as they stand in the global batch, (total, ...), without gradients.

        Row i of this process is row `rank + i * world` there.
        """
        if self.world == 1:
            return rows.detach()
        return self.gather(rows.detach()).unflatten(0, (self.world, -1)).transpose(0, 1).flatten(0, 1)[: self.total]


class _Gather(torch.autograd.Function):
    """Rows (n, ...) of all processes, (world * n, ...); backward: the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: int) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world)]
        torch.distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return gradient.chunk(world)[rank], None
