"""Labelling the pool with all teachers, block by block: resumable, shared by processes, flat in memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from framefold.data.batches import VideoDataset
from framefold.data.pseudo_labels import MEAN
from framefold.inference.blocks import BlockFolder
from framefold.inference.predict import block_logits
from framefold.inference.predictions import softmax
from framefold.inference.processes import Processes, SharedProgress
from framefold.scratch import Scratch

Array16 = npt.NDArray[np.float16]


@dataclass(frozen=True)
class SoftLabels:
    """Soft labels under way. A block holds float16 [1, B, C], and behind them [T, B, C] per teacher when asked for."""

    blocks: BlockFolder
    n_classes: int
    teachers: Sequence[int]
    per_teacher: bool

    def write(self, number: int, probs: npt.NDArray[np.float64], teacher: npt.NDArray[np.int32]) -> None:
        """Store block `number`: probs (T, B, C) of all teachers, of which `teacher` (B,) says whose count."""
        allowed = (teacher[None] == MEAN) | (teacher[None] == np.array(self.teachers)[:, None])  # (T, B)
        own = np.where(allowed[..., None], probs.astype(np.float32), 0)
        mean = own.sum(axis=0) / np.maximum(allowed.sum(axis=0), 1)[:, None]
        parts = [mean[None], own] if self.per_teacher else [mean[None]]
        self.blocks.write(number, np.concatenate(parts).astype(np.float16))

    def hard_labels(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
        """Best class (-1 without a soft label) and its probability, block by block."""
        for block in self.blocks:
            confidence = block[0].max(axis=1).astype(np.float32)
            yield np.where(confidence > 0, block[0].argmax(axis=1), -1).astype(np.int32), confidence

    def publish(self, folder: Path) -> None:
        """Put the blocks together: soft.npy [N, C] and, when asked for, per_teacher.npy [T, N, C]."""
        rows, row = self.blocks.rows, 0
        with ExitStack() as files:
            soft = files.enter_context(NpyFile(folder / "soft.npy", (rows, self.n_classes)))
            shape = len(self.teachers), rows, self.n_classes
            each = files.enter_context(NpyFile(folder / "per_teacher.npy", shape)) if self.per_teacher else None
            for block in self.blocks:
                soft.write(row, block[0])
                for place, labels in enumerate(block[1:] if each else ()):
                    each.write(place * rows + row, labels)  # type: ignore[union-attr]
                row += block.shape[1]


class NpyFile:
    """A float16 .npy file that is written block by block, in any order, without mapping it into memory."""

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, shape

    def __enter__(self) -> "NpyFile":
        self.file: IO[bytes] = self.path.open("wb")
        header = {"descr": "<f2", "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self.file, header)
        self.start = self.file.tell()
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, row: int, block: Array16) -> None:
        """Rows `row`.. of the file seen as (rows, columns)."""
        self.file.seek(self.start + 2 * row * self.shape[-1])
        self.file.write(np.ascontiguousarray(block, dtype="<f2").tobytes())


def label_pool(
    models: Mapping[int, nn.Module],
    dataset: VideoDataset,
    teacher: npt.NDArray[np.int32],
    soft: SoftLabels,
    scratch: Scratch,
    processes: Processes,
    *,
    temperature: float,
    **settings: Any,
) -> None:
    """Fill `soft` for all rows of `dataset`; `teacher` (N,) says who labels a video.

    `settings`: batch_size, device and precision of `block_logits`. With many processes each labels some blocks; all are
    there when this returns in the main process.
    """
    for model in models.values():
        model.eval().to(settings["device"])
    missing = processes.main_first("missing", soft.blocks.open, scratch.guard)
    start = len(dataset) - sum(len(soft.blocks.rows_of(number)) for number in missing)
    progress = SharedProgress(processes, "pseudo_label", len(dataset), "videos", start)

    def pause() -> None:
        progress.add(0)
        scratch.guard()

    for number in processes.deal("blocks", missing):
        rows = soft.blocks.rows_of(number)
        logits = block_logits(list(models.values()), dataset, rows, **settings)
        probs = np.stack([softmax(part / temperature) for part in logits])
        soft.write(number, probs, teacher[rows])
        progress.add(len(rows))
        scratch.guard()
    processes.join("labelled", pause)
    progress.close()
