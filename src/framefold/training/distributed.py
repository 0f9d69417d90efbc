"""Device, precision and processes, through `accelerate`: one process on a laptop, or many under `torchrun`."""

from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object, reduce

from framefold.runtime import Runtime, resolve_precision


def start_accelerator(runtime: Runtime, precision: str) -> Accelerator:
    """The Accelerator of this process; `precision` is auto, fp32 or bf16. UserError: not available here."""
    device = runtime.torch_device()
    runtime.prepare_cpu()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    mixed = "bf16" if resolve_precision(precision, device) == "bf16" else "no"
    AcceleratorState._reset_state()  # it is global: an earlier training in this process may have had another precision
    # a batch without frames leaves the parameters of the frames' side unused; buffers (queues, statistics of the global
    # batch) are computed alike by all processes, so nothing need be sent. Not so those of torch's own batch
    # normalisation in a tower that adapt_clip trains: there each process has its own, and the first one's are published
    data_parallel = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    return Accelerator(cpu=device.type == "cpu", mixed_precision=mixed, kwargs_handlers=[data_parallel])


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Whether `flag` is set in any of the processes; all must ask."""
    if accelerator.num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum").item() > 0)


def max_over_processes(accelerator: Accelerator, value: int) -> int:
    """The largest `value` of all processes; all must ask."""
    if accelerator.num_processes == 1:
        return value
    largest = torch.tensor(value, device=accelerator.device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def mean_over_processes(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    return values if accelerator.num_processes == 1 else reduce(values, reduction="mean")


def from_all_processes(accelerator: Accelerator, value: Any) -> list[Any]:
    """`value` of every process, in order of rank."""
    return gather_object([value]) if accelerator.num_processes > 1 else [value]
