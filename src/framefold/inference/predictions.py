"""Predictions on disk: Parquet, id and float32 logits [C]; one schema for out-of-fold, holdout and test."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from framefold.errors import UserError
from framefold.storage import read_parquet, write_parquet

PROBE = Path("models/reference")  # of the linear probe, a file for each part: decision values in place of logits


def write_predictions(path: Path | str, ids: Sequence[str], logits: np.ndarray) -> None:
    """ids: N strings; logits (N, C), stored as float32."""
    values = pa.array(np.ascontiguousarray(logits, dtype=np.float32).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(values, logits.shape[1])
    write_parquet(path, pa.table({"id": pa.array(ids, pa.string()), "logits": column}))


def read_predictions(path: Path | str) -> tuple[list[str], np.ndarray]:
    """ids (N), logits float32 (N, C)."""
    table = read_parquet(path, columns=["id", "logits"]).combine_chunks()
    size = table.schema.field("logits").type.list_size
    if len(table) == 0:
        return [], np.zeros((0, size), dtype=np.float32)
    values = table["logits"].chunk(0).flatten().to_numpy()
    return table["id"].to_pylist(), values.reshape(len(table), size)


def read_aligned(path: Path | str, ids: Sequence[str]) -> np.ndarray:
    """Logits (N, C) of exactly the videos `ids`, in that order.

    Raises UserError when the file holds other videos: it was made from other samples.
    """
    own, logits = read_predictions(path)
    if list(ids) == own:
        return logits
    position = {video: i for i, video in enumerate(own)}
    missing = [video for video in ids if video not in position]
    if missing or len(own) != len(ids):
        raise UserError(f"{path}: not the videos expected ({len(own)} of {len(ids)}); rebuild it with `dvc repro`")
    return logits[[position[video] for video in ids]]


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, C) -> probabilities (N, C) float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def mean_logits(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several models' logits (N, C), summed in float64 and rounded to float32 once."""
    return np.asarray(np.mean(parts, axis=0, dtype=np.float64), dtype=np.float32)
