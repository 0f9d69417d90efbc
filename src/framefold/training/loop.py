"""The one training loop: teacher, pretraining, finetuning and encoder adaptation give it a task and batches.

It knows nothing of videos. Interrupted at any instant and started again, it ends with the same bytes as an
uninterrupted run (on one type of CPU, with one thread count).
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from framefold.data.places import with_places
from framefold.errors import UserError
from framefold.models.normalization import has_batch_statistics
from framefold.models.recomputation import recompute_layers
from framefold.params.training import AdversarialParams, OptimizationParams
from framefold.progress import Progress
from framefold.runtime import load_runtime, seed_everything
from framefold.scratch import Scratch
from framefold.training.adversarial import build_adversary
from framefold.training.averaging import ExponentialAverage
from framefold.training.checkpoints import restore_rng, rng_state
from framefold.training.curves import Curve, is_time_for_row
from framefold.training.distributed import (
    any_process,
    from_all_processes,
    max_over_processes,
    mean_over_processes,
    start_accelerator,
)
from framefold.training.optimization import Schedule, build_optimizer, parameter_groups
from framefold.training.protocols import Batch, Batches, Task, UsesAverage
from framefold.training.sharing import Share

log = logging.getLogger(__name__)

AGREE_STEPS = 20  # several processes settle every so many steps whether to save
MAX_SAVING = 0.05  # share of the time that goes into checkpoints of large models
NAMED = 64  # samples in the message about a loss that is not finite

AfterEpoch = Callable[[int, nn.Module, nn.Module], Mapping[str, Any]]


@dataclass
class TrainResult:
    """`model` and its EMA `ema` (the same object without EMA), in eval mode; the curve's rows; what `after_epoch`
    returned."""

    model: nn.Module
    ema: nn.Module
    history: list[dict[str, float]]
    epochs: list[dict[str, Any]]


def train(
    task: Task,
    epochs: Callable[[int], Batches],
    params: OptimizationParams,
    *,
    learning_rates: Mapping[str, float],
    seed: int,
    precision: str,
    scratch: Scratch,
    adversarial: AdversarialParams | None = None,
    after_epoch: AfterEpoch | None = None,
) -> TrainResult:
    """Train `task.model` for `params.epochs` epochs.

    epochs(e): the batches of epoch e. learning_rates: peak rate by role (`params.lr.model_dump()`). precision: auto,
    fp32 or bf16. after_epoch(epoch, model, ema), both in eval mode: runs in the main process; the plain values it
    returns are kept over interruptions. UserError: a loss or gradient that is not finite. SystemExit: SIGTERM, SIGINT;
    OrphanedError: the parent has gone; both after saving.
    """
    # Where training starts, the first that applies:
    # 1. resume: the checkpoint in scratch, left by an interrupted run of the same params, inputs and code
    # 2. warm start: the weights that the caller has loaded into task.model
    # 3. from scratch: the weights that task.model was initialised with
    run = _Run(task, epochs(0), params, learning_rates, seed, precision, scratch, adversarial)
    run.resume()
    for epoch in range(run.position.epoch, params.epochs):
        for parts in run.start_epoch(epochs(epoch)):
            run.step(parts)
            if is_time_for_row(run.position.batch, len(run.batches)):
                run.add_row()
            if run.is_time_to_save():
                run.save()
        run.finish_epoch(after_epoch)
        if run.is_time_to_save():
            run.save()
    return run.result()


@dataclass
class Position:
    """What has been done: epochs, batches of the epoch under way, steps and samples in total."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    batches: int = 0  # of the epoch under way: under a token budget it depends on the number of processes


class _LossModule(nn.Module):
    """The task as a module, so that autocast and gradient synchronisation wrap the whole of its forward pass."""

    def __init__(self, task: Task, compiled: bool):
        super().__init__()
        self.model, self.loss = task.model, task.loss
        if compiled:  # the model itself is not wrapped: its weights keep their names; dropout keeps torch's own draws
            self.loss = torch.compile(task.loss, dynamic=True, options={"fallback_random": True})

    def forward(self, batch: Batch, share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch, share)


class _Run:
    """One training under way: what the loop above does, step by step."""

    def __init__(
        self,
        task: Task,
        first_epoch: Batches,
        params: OptimizationParams,
        learning_rates: Mapping[str, float],
        seed: int,
        precision: str,
        scratch: Scratch,
        adversarial: AdversarialParams | None,
    ):
        self.params, self.scratch, self.runtime = params, scratch, load_runtime()
        if self.runtime.compile and self.runtime.checkpointing:
            raise UserError(
                "compile and checkpointing: torch does not compile layers that it runs twice; set one of them"
            )
        self.accelerator = start_accelerator(self.runtime, precision)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        seed_everything(seed + self.rank)
        self.model = task.model.to(self.accelerator.device).train()
        recompute_layers(self.model, self.runtime.checkpointing)
        self.loss: nn.Module = self.accelerator.prepare(_LossModule(task, self.runtime.compile))
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = parameter_groups(self.model, task.role_of, learning_rates, params.weight_decay)
        self.optimizer = build_optimizer(groups, self.accelerator.device)
        self.samples = params.epochs * sum(first_epoch.global_size(i) for i in range(len(first_epoch)))
        self.schedule = Schedule(self.optimizer, self.samples, params.warmup)
        self.ema = ExponentialAverage(self.model, params.ema_decay)
        if isinstance(task, UsesAverage):
            task.average = self.ema.model
        self.adversary = build_adversary(self.model, adversarial)
        if self.adversary and getattr(task, "once_a_step", False):
            raise ValueError(f"{scratch.item}: an adversary asks for the loss again, which changes at every call")
        self.micro_batch = self._micro_batch(task)
        self.position, self.curve, self.after_epochs = Position(), Curve(), list[dict[str, Any]]()

    def _micro_batch(self, task: Task) -> int:
        compared = getattr(task, "whole_batch", False) or has_batch_statistics(task.model)
        if self.runtime.micro_batch and compared:
            log.info("%s: samples are compared within a batch, so micro_batch is not applied", self.scratch.item)
            return 0
        return self.runtime.micro_batch

    # ---- one epoch

    def start_epoch(self, batches: Batches) -> Iterator[list[Batch]]:
        """The epoch's batches from the present position on, on the device, each in parts of a micro-batch."""
        self.batches, device = batches.shard(self.rank, self.world), self.accelerator.device
        if self.position.batch and self.position.batches != len(self.batches):
            raise UserError(
                f"{self.scratch.item}: interrupted in an epoch of {self.position.batches} batches, which has "
                f"{len(self.batches)} in {self.world} processes; go on with as many processes as before"
            )
        self.position.batches = len(self.batches)
        packed_for = device if self.runtime.remove_padding else None
        loader: DataLoader = DataLoader(
            self.batches,  # type: ignore[arg-type]
            batch_size=None,
            sampler=range(self.position.batch, len(self.batches)),
            num_workers=self.runtime.workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its own: the global one belongs to dropout
            collate_fn=partial(prepared, size=self.micro_batch, packed_for=packed_for),
        )
        for parts in loader:
            yield [{name: tensor.to(device, non_blocking=True) for name, tensor in part.items()} for part in parts]

    def step(self, parts: list[Batch]) -> None:
        """Gradients over the whole global batch, clipped; one step of optimizer and EMA."""
        size = self.batches.global_size(self.position.batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(parts, size)
        if self.adversary:
            self.adversary(lambda: self._backward(parts, size))
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.params.max_grad_norm, foreach=True)
        self.rate = self.schedule.set_rates(self.position.samples, size)
        self.optimizer.step()
        self.ema.update()
        self.curve.keep({**losses, "grad_norm": norm})
        self.position.batch += 1
        self.position.step += 1
        self.position.samples += size
        self.progress.add(size, self.curve.shown())

    def _backward(self, parts: list[Batch], size: int) -> dict[str, Tensor]:
        """Add the gradient of the mean loss over the global batch of `size` samples; returns losses whose mean over the
        processes is that of the global batch."""
        totals: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            own = samples_of(part)
            weight = own * self.world / size  # gradients are averaged over the processes, hence their number
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.loss):
                share = Share(own, size, self.rank, self.world, self.position.samples / self.samples)
                loss, details = self.loss(part, share)
                self.accelerator.backward(loss if weight == 1 else loss * weight)
            for name, value in {"loss": loss, **details}.items():
                mean = value.detach().float() * weight
                totals[name] = totals[name] + mean if name in totals else mean
        return totals

    def finish_epoch(self, after_epoch: AfterEpoch | None) -> None:
        """Call `after_epoch` with both models in eval mode, in the main process, and keep what it returns."""
        result: dict[str, Any] = {}
        if after_epoch and self.accelerator.is_main_process:
            result = dict(after_epoch(self.position.epoch, self.model.eval(), self.ema.model.eval()))
        self.accelerator.wait_for_everyone()
        self.model.train()
        self.after_epochs.append(result)
        self.position.epoch += 1
        self.position.batch = 0

    def add_row(self) -> None:
        """A row of the curve: means over the steps since the last one, over all processes."""
        self._check_finite()
        means = mean_over_processes(self.accelerator, self.curve.means()).tolist()
        self.curve.add_row(self.position.epoch, self.position.step, self.rate, means)

    def _check_finite(self) -> None:
        """UserError, in all processes: names the first step since the last row that was not finite in any of them, and
        its samples; those of one process if the loss of no other was bad."""
        ago = max_over_processes(self.accelerator, self.curve.first_bad())
        if ago == 0:
            return
        batch, values = self.position.batch - ago, self.curve.values(ago)
        everyone = from_all_processes(self.accelerator, (values, self.batches.names(batch)))
        culprits = [one for one in everyone if not math.isfinite(one[0]["loss"])] or everyone
        names = [name for _, part in culprits for name in part]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise UserError(
            f"{self.scratch.item}: not finite at step {self.position.step - ago + 1} (epoch {self.position.epoch}, "
            f"batch {batch}): {culprits[0][0]}; try a lower learning rate, a longer warm-up or precision fp32; "
            f"the last good checkpoint is kept; samples {', '.join(names[:NAMED])}{more}"
        )

    # ---- interruptions

    def is_time_to_save(self) -> bool:
        """Every checkpoint_seconds (seldomer if saving takes long), and at once when the stage is to stop."""
        if self.world > 1 and self.position.step % AGREE_STEPS and self.position.batch:
            return False
        due = time.monotonic() - self.saved_at >= self.interval
        return any_process(self.accelerator, due or self.scratch.interrupted())

    def save(self) -> None:
        """Save everything that the rest of the training depends on; then stop if the stage is to stop."""
        self._check_finite()
        started = time.monotonic()
        rngs = from_all_processes(self.accelerator, rng_state())
        curves = from_all_processes(self.accelerator, self.curve.state_dict())
        if self.accelerator.is_main_process:
            self.scratch.save(self._state() | {"rngs": rngs, "curves": curves})
        self.accelerator.wait_for_everyone()
        self.saved_at = time.monotonic()
        longest = min((self.saved_at - started) / MAX_SAVING, 10 * self.runtime.checkpoint_seconds)
        self.interval = max(self.runtime.checkpoint_seconds, longest)
        self.scratch.guard()

    def _state(self) -> dict[str, Any]:
        return {
            "position": asdict(self.position),
            "after_epochs": self.after_epochs,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def resume(self) -> None:
        """Go on from the checkpoint in scratch, if there is one."""
        self.accelerator.wait_for_everyone()  # the main process has put scratch in order
        state = self.scratch.load()
        if state is not None:
            self._restore(state)
        self.saved_at, self.interval = time.monotonic(), self.runtime.checkpoint_seconds
        self.progress = Progress(self.scratch.item, self.samples, "samples", start=self.position.samples)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.position = Position(**state["position"])
        self.after_epochs = list(state["after_epochs"])
        for name in ("model", "optimizer", "ema"):
            getattr(self, name).load_state_dict(state[name])
        if len(state["rngs"]) == self.world:  # else: another number of processes, whose dropout is another one anyway
            restore_rng(state["rngs"][self.rank])
        self.curve.load_state_dict(state["curves"][min(self.rank, len(state["curves"]) - 1)], self.accelerator.device)
        log.info("%s: resumed after step %d (epoch %d)", self.scratch.item, self.position.step, self.position.epoch)

    def result(self) -> TrainResult:
        self.progress.close(**self.curve.shown())
        return TrainResult(self.model.eval(), self.ema.model.eval(), self.curve.rows, self.after_epochs)


def samples_of(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def prepared(batch: Batch, size: int, packed_for: torch.device | None) -> list[Batch]:
    """Parts of a batch where it is made, with what a model on `packed_for` needs to leave padding out."""
    parts = split(batch, size)
    return parts if packed_for is None else [with_places(part, packed_for) for part in parts]


def split(batch: Batch, size: int) -> list[Batch]:
    """Parts of at most `size` samples along the first dimension of every tensor; 0: the batch as it is.

    ValueError: a tensor has not one row a sample.
    """
    samples = samples_of(batch)
    if not 0 < size < samples:
        return [batch]
    for name, tensor in batch.items():
        if len(tensor) != samples:
            raise ValueError(f"{name}: {len(tensor)} rows for {samples} samples; its task must set whole_batch")
    return [{name: tensor[start : start + size] for name, tensor in batch.items()} for start in range(0, samples, size)]
