"""Training curves: mean losses per stretch of steps, as rows for `dvc plots`."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framefold.storage import write_aside

ROWS_PER_EPOCH = 20
DECISIVE = ("loss", "grad_norm")  # not finite: the weights are lost; a part of the loss may have nothing to measure


class Curve:
    """The rows so far, and the losses since the last one: kept on the device, so that no step waits for the host."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.names: list[str] = []
        self.pending: list[Tensor] = []  # one vector of losses a step

    def keep(self, losses: Mapping[str, Tensor]) -> None:
        """Take in one step's scalars; the names must be the same at every step."""
        if self.names and list(losses) != self.names:
            raise ValueError(f"losses {list(losses)} after {self.names}: a task returns the same ones at every step")
        self.names = list(losses)
        self.pending.append(torch.stack(list(losses.values())))

    def first_bad(self) -> int:
        """The first step since the last row whose loss or gradient is not finite: how many steps ago it was, 1 for the
        last one. 0: all is well."""
        if not self.pending:
            return 0
        decisive = [index for index, name in enumerate(self.names) if name in DECISIVE]
        bad = ~torch.stack(self.pending)[:, decisive].cpu().isfinite().all(1)
        return len(bad) - int(bad.nonzero()[0]) if bad.any() else 0

    def values(self, ago: int) -> dict[str, float]:
        """The losses of the step `ago` steps back, 1 for the last one."""
        return dict(zip(self.names, self.pending[-ago].tolist(), strict=True))

    def means(self) -> Tensor:
        """(losses,) float64 over the steps since the last row."""
        return torch.stack(self.pending).double().mean(0)

    def add_row(self, epoch: int, step: int, rate: float, means: Sequence[float]) -> None:
        self.rows.append({"epoch": epoch, "step": step, "lr": rate, **dict(zip(self.names, means, strict=True))})
        self.pending = []

    def shown(self) -> dict[str, str]:
        """For the progress line: the loss of the last row."""
        return {"loss": f"{self.rows[-1]['loss']:.4f}", "lr": f"{self.rows[-1]['lr']:.1e}"} if self.rows else {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "names": self.names, "pending": [vector.cpu() for vector in self.pending]}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.rows, self.names = list(state["rows"]), list(state["names"])
        self.pending = [vector.to(device) for vector in state["pending"]]


def is_time_for_row(batch: int, batches: int) -> bool:
    """After `batch` of an epoch's `batches`: at fixed places, about ROWS_PER_EPOCH times, and at its end."""
    return batch % math.ceil(batches / ROWS_PER_EPOCH) == 0 or batch == batches


def write_curves(path: Path | str, history: Sequence[Mapping[str, float]]) -> None:
    """Write `TrainResult.history`: columns epoch, step, lr, loss, the objectives' own losses, grad_norm. No timings."""
    columns = list(history[0]) if history else ["epoch", "step", "lr", "loss"]
    with write_aside(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_formatted(row[column]) for column in columns] for row in history)


def _formatted(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
