"""SWA: the mean of several of a student's kept checkpoints (Izmailov et al. 2018), which are EMA weights already."""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from framefold.errors import UserError
from framefold.models.end_to_end import load_student
from framefold.models.weights import read_state_dict
from framefold.training.averaging import average_checkpoints

CHECKPOINT = re.compile(r"epoch-(\d+)\.safetensors")


def kept_checkpoints(folder: Path | str) -> list[str]:
    """Names of the checkpoints in `folder`, oldest first; nothing else counts, least of all an earlier average."""
    names = [path.name for path in Path(folder).glob("*")]
    epochs = {int(match[1]): name for name in names if (match := CHECKPOINT.fullmatch(name))}
    if not epochs:
        raise UserError(f"{folder}: holds no epoch-<n>.safetensors; rebuild it with `dvc repro finetune`")
    return [epochs[epoch] for epoch in sorted(epochs)]


def averaged_model(folder: Path | str, names: Sequence[str]) -> nn.Module:
    """The equal mean of the named checkpoints in `folder`, in evaluation mode."""
    model = load_student(folder, names[0])
    return average_checkpoints(model, (read_state_dict(Path(folder) / name) for name in names)).eval()
