"""Labelling the pool with all teachers, block by block: resumable, and flat in memory for millions of videos."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from framefold.data.batches import VideoDataset
from framefold.data.pseudo_labels import MEAN
from framefold.inference.predict import BLOCK, block_logits
from framefold.inference.predictions import softmax
from framefold.progress import Progress
from framefold.scratch import Scratch
from framefold.storage import read_json, write_json

Array16 = npt.NDArray[np.float16]
DONE = "done.json"


class BlockFile:
    """A float16 .npy file that is written in place, block by block, without mapping it into memory."""

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, shape
        if not path.is_file():
            aside = path.with_suffix(".aside")
            np.lib.format.open_memmap(aside, mode="w+", dtype=np.float16, shape=shape).flush()
            os.replace(aside, path)
        self.start = path.stat().st_size - 2 * int(np.prod(shape))  # of the numbers, after the header

    def write(self, row: int, block: Array16) -> None:
        """Rows `row`.. of the file seen as (rows, columns)."""
        with self.path.open("r+b") as file:
            file.seek(self.start + 2 * row * self.shape[-1])
            file.write(np.ascontiguousarray(block, dtype=np.float16).tobytes())

    def read(self, row: int, count: int) -> Array16:
        """(count, columns)"""
        with self.path.open("rb") as file:
            file.seek(self.start + 2 * row * self.shape[-1])
            return np.frombuffer(file.read(2 * count * self.shape[-1]), np.float16).reshape(-1, self.shape[-1])


class SoftLabels:
    """Soft labels under way in a scratch folder: soft.npy [N, C] and, when asked for, per_teacher.npy [T, N, C]."""

    def __init__(self, folder: Path, rows: int, n_classes: int, n_teachers: int, per_teacher: bool):
        self.folder, self.rows = folder, rows
        self.soft = BlockFile(folder / "soft.npy", (rows, n_classes))
        self.each = BlockFile(folder / "per_teacher.npy", (n_teachers, rows, n_classes)) if per_teacher else None

    @property
    def done(self) -> int:
        """Rows that are written."""
        path = self.folder / DONE
        return int(read_json(path)["rows"]) if path.is_file() else 0

    @property
    def files(self) -> list[Path]:
        return [self.soft.path] + ([self.each.path] if self.each else [])

    def hard_labels(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        """Best class (-1 without a soft label) and its probability, block by block."""
        for start in range(0, self.rows, BLOCK):
            block = self.soft.read(start, min(BLOCK, self.rows - start))
            confidence = block.max(axis=1).astype(np.float32)
            yield np.where(confidence > 0, block.argmax(axis=1), -1).astype(np.int32), confidence

    def write(
        self, row: int, probs: npt.NDArray[np.float32], teacher: npt.NDArray[np.int32], teachers: Sequence[int]
    ) -> None:
        """Store the block at `row`: probs (T, B, C) of all teachers, of which `teacher` (B,) says whose count."""
        allowed = (teacher[None] == MEAN) | (teacher[None] == np.array(teachers)[:, None])  # (T, B)
        own = np.where(allowed[..., None], probs, 0)
        self.soft.write(row, own.sum(axis=0) / np.maximum(allowed.sum(axis=0), 1)[:, None])
        if self.each is not None:
            for place, block in enumerate(own):
                self.each.write(place * self.rows + row, block)
        write_json(self.folder / DONE, {"rows": row + len(teacher)})


def label_pool(
    models: Mapping[int, nn.Module],
    dataset: VideoDataset,
    teacher: npt.NDArray[np.int32],
    soft: SoftLabels,
    scratch: Scratch,
    *,
    temperature: float,
    batch_size: int,
    device: torch.device,
    precision: str,
) -> None:
    """Fill `soft` for all rows of `dataset`; `teacher` (N,) says who labels a video."""
    for model in models.values():
        model.eval().to(device)
    progress = Progress("pseudo_label", total=len(dataset), unit="videos", start=soft.done)
    for start in range(soft.done, len(dataset), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(dataset)))
        probs = np.stack(
            [
                softmax(block_logits(model, dataset, rows, batch_size, device, precision) / temperature)
                for model in models.values()
            ]
        )
        soft.write(start, probs.astype(np.float32), teacher[rows], list(models))
        progress.add(len(rows))
        scratch.guard()
    progress.close()
