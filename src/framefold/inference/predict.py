"""A model's logits for the rows of a dataset, in their order."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from framefold.data.batches import VideoDataset

BLOCK = 2048  # videos sorted by length together: a block's batches do not depend on what comes after it


def predict_logits(
    model: nn.Module, dataset: VideoDataset, batch_size: int, device: torch.device | str, precision: str = "fp32"
) -> np.ndarray:
    """(N, C) float32 logits in the order of `dataset.rows`."""
    blocks = list(iterate_logits(model, dataset, batch_size, device, precision))
    return np.concatenate(blocks) if blocks else np.zeros((0, 0), dtype=np.float32)


def iterate_logits(
    model: nn.Module, dataset: VideoDataset, batch_size: int, device: torch.device | str, precision: str = "fp32"
) -> Iterator[np.ndarray]:
    """Blocks (<= BLOCK, C) of float32 logits in the order of `dataset.rows`, for sets too large to hold."""
    model.eval().to(device)
    for start in range(0, len(dataset), BLOCK):
        positions = np.arange(start, min(start + BLOCK, len(dataset)))
        yield block_logits(model, dataset, positions, batch_size, device, precision)


@torch.inference_mode()
def block_logits(
    model: nn.Module,
    dataset: VideoDataset,
    positions: np.ndarray,
    batch_size: int,
    device: torch.device | str,
    precision: str,
) -> np.ndarray:
    """Batches of like lengths, so that little is padded; logits (P, C) return in the order of `positions`."""
    order = np.argsort(dataset.lengths(positions), kind="stable")
    parts = []
    for start in range(0, len(order), batch_size):
        batch = dataset.batch(positions[order[start : start + batch_size]])
        on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            parts.append(model(on_device).float())
    logits = torch.cat(parts).cpu().numpy()
    restored = np.empty_like(logits)
    restored[order] = logits
    return restored
