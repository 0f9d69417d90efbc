"""No step of a training waits for the device: what a loss does never depends on values, only on shapes.

pytest tests/test_no_synchronisation.py

On fake tensors everything that would hand a value to the host, or make a shape of one, raises an error: `.item()`,
`nonzero`, indexing by a mask.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from real_tasks import NAMES, real_task
from stores import make_project
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from framefold.data.places import with_places
from framefold.training.loop import samples_of
from framefold.training.momentum import Vectors, VideoQueue
from framefold.training.protocols import UsesAverage
from framefold.training.sharing import Share

STOPS = (DataDependentOutputException, DynamicOutputShapeException)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def step(name: str, device: str, remove_padding: bool = False) -> None:
    """Forward pass, and on the CPU the backward pass, of one batch."""
    real, mode = real_task(name, dropout=0.1), FakeTensorMode()
    batch, task = real.epochs(0)[0], real.task
    if remove_padding:
        batch = with_places(batch, torch.device(device))
    faked = {key: mode.from_tensor(tensor) for key, tensor in batch.items()}
    for module in (*task.model.modules(), *average_of(task)):
        for tensors in (module._parameters, module._buffers):
            tensors |= {key: fake(mode, tensor, device) for key, tensor in tensors.items() if tensor is not None}
    if name == "adapt":
        task.log_scale = task.model.log_scale
    with mode:
        moved = {key: tensor.to(device) for key, tensor in faked.items()}
        loss, _ = task.loss(moved, Share(samples_of(batch), samples_of(batch)))
        assert loss.device.type == device
        if device == "cpu":  # fake tensors of a GPU that is not there have no backward pass
            loss.backward()


def average_of(task: Any) -> Iterator[torch.nn.Module]:
    """The modules of the EMA that a task's loss asks."""
    return task.average.modules() if isinstance(task, UsesAverage) and task.average is not None else iter(())


def fake(mode: FakeTensorMode, tensor: Tensor, device: str) -> Tensor:
    moved = mode.from_tensor(tensor.detach())
    with mode:
        moved = moved.to(device)
        return torch.nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else moved


@pytest.mark.parametrize("remove_padding", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_needed_on_the_host(project: Path, name: str, device: str, remove_padding: bool) -> None:
    step(name, device, remove_padding)


def selected(states: Tensor, positions: Tensor) -> Tensor:
    """The planted defect: states chosen by a mask."""
    mask = torch.zeros(states.shape[:2], dtype=torch.bool).flatten().index_fill(0, positions, True)
    return states.flatten(0, 1)[mask]


def branching(logits: Tensor, labels: Tensor) -> Tensor:
    """The planted defect: a value decides on the host."""
    return labels * (1 if bool(logits.sum() > 0) else 0)


def chosen(vectors: Tensor, classes: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """The planted defect: anchors without a positive are cut out."""
    pairs = (vectors @ vectors.T)[classes == classes.unsqueeze(1)]
    return pairs.mean() / temperature


def contrasted(a: Tensor, b: Tensor, valid: Tensor, scale: Tensor) -> Tensor:
    """The planted defect: rows that do not count are cut out."""
    return (a[valid] @ b[valid].T * scale).logsumexp(1).mean()


def enqueued(queue: VideoQueue, vectors: Vectors, keys: Tensor, valid: Tensor) -> None:
    """The planted defect: only videos that count take a place in the queue."""
    queue.position += int(valid.sum())


@pytest.mark.parametrize(
    ("name", "where", "defect"),
    [
        ("pretrain single_stream", "framefold.models.heads.at_positions", selected),
        ("pretrain dual_stream", "framefold.objectives.itc.info_nce", contrasted),
        ("pretrain_all dual_stream", "framefold.training.momentum.VideoQueue.enqueue", enqueued),
        ("adapt", "framefold.training.contrastive.info_nce", contrasted),
        ("classify dual_stream", "framefold.objectives.classification.hits", branching),
        ("supervise single_stream", "framefold.training.supervised.supervised_contrast", chosen),
    ],
)
def test_a_step_that_waits_is_caught(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str, defect: object
) -> None:
    monkeypatch.setattr(where, defect)
    with pytest.raises(STOPS):
        step(name, "cpu")
