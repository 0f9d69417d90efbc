"""Models' logits for the rows of a dataset, in their order."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from framefold.data.batches import VideoDataset

Forward = Callable[[Any, dict[str, torch.Tensor]], tuple[torch.Tensor, ...]]  # of a model on a batch
BLOCK = 2048  # videos sorted by length together: a block's batches do not depend on what comes after it


def predict_logits(
    model: nn.Module, dataset: VideoDataset, batch_size: int, device: torch.device | str, precision: str = "fp32"
) -> np.ndarray:
    """(N, C) float32 logits in the order of `dataset.rows`."""
    model.eval().to(device)
    blocks = [np.zeros((0, 0), dtype=np.float32)]
    for start in range(0, len(dataset), BLOCK):
        positions = np.arange(start, min(start + BLOCK, len(dataset)))
        blocks += block_logits([model], dataset, positions, batch_size, device, precision)
    return np.concatenate(blocks[1:] or blocks)


def block_logits(
    models: Sequence[nn.Module],
    dataset: VideoDataset,
    positions: np.ndarray,
    batch_size: int,
    device: torch.device | str,
    precision: str,
) -> list[np.ndarray]:
    """Each model's logits (P, C) float32, in the order of `positions`; the models are on `device`, in evaluation mode.

    Batches are of like lengths, so that little is padded. A batch is read and moved once for all models.
    """
    outputs = block_outputs(
        models, dataset, positions, lambda model, batch: (model(batch),), batch_size, device, precision
    )
    return [logits for (logits,) in outputs]


@torch.inference_mode()
def block_outputs(
    models: Sequence[nn.Module],
    dataset: VideoDataset,
    positions: np.ndarray,
    forward: Forward,
    batch_size: int,
    device: torch.device | str,
    precision: str,
) -> list[list[np.ndarray]]:
    """`block_logits` for any outputs: of each model all that `forward(model, batch)` gives, (P, ...) float32 each."""
    order = np.argsort(dataset.lengths(positions), kind="stable")
    parts: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in models]
    for start in range(0, len(order), batch_size):
        batch = dataset.batch(positions[order[start : start + batch_size]])
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            for model, own in zip(models, parts, strict=True):
                own.append(tuple(output.float() for output in forward(model, on_device)))
    return [[restored(torch.cat(output).cpu().numpy(), order) for output in zip(*own, strict=True)] for own in parts]


def restored(logits: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Rows that stand in `order`, put back into their places."""
    placed = np.empty_like(logits)
    placed[order] = logits
    return placed
