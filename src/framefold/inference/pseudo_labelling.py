"""Labelling the pool with all teachers, block by block: resumable, shared by processes, flat in memory."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from framefold.data.batches import VideoDataset
from framefold.data.pseudo_labels import MEAN
from framefold.inference.blocks import BlockFolder
from framefold.inference.neighbours import Neighbours, logits_and_states
from framefold.inference.predict import block_logits, block_outputs
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


@dataclass
class Labeller:
    """What every teacher says of videos of the pool: its own probabilities, its neighbours' vote, or their mean."""

    models: Mapping[int, Sequence[nn.Module]]  # teacher -> its models, on the device, in evaluation mode
    dataset: VideoDataset
    temperature: float
    settings: Mapping[str, Any]  # batch_size, device and precision of `block_logits`
    neighbours: Mapping[int, Sequence[Neighbours]] | None  # one for each model; None: they have no vote
    alone: bool  # neighbours: without the teachers' own probabilities

    def probs(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """(T, B, C) of the videos at `rows`: a teacher's is the mean over its models."""
        models = list(chain.from_iterable(self.models.values()))
        if self.neighbours is None:
            logits = block_logits(models, self.dataset, rows, **self.settings)
            each = [softmax(part / self.temperature) for part in logits]
        else:
            voters = chain.from_iterable(self.neighbours.values())
            outputs = block_outputs(models, self.dataset, rows, logits_and_states, **self.settings)
            each = [self._mixed(logits, states, own) for (logits, states), own in zip(outputs, voters, strict=True)]
        per_model = np.stack(each).reshape(len(self.models), -1, *each[0].shape)  # (T, M, B, C)
        return per_model.mean(axis=1)

    def _mixed(self, logits: npt.NDArray[np.float32], states: npt.NDArray[np.float32], own: Neighbours) -> npt.NDArray:
        votes = own.vote(states).astype(np.float64)
        return votes if self.alone else (votes + softmax(logits / self.temperature)) / 2


def label_pool(
    labeller: Labeller, teacher: npt.NDArray[np.int32], soft: SoftLabels, scratch: Scratch, processes: Processes
) -> None:
    """Fill `soft` for all rows of the labeller's videos; `teacher` (N,) says who labels a video.

    With many processes each labels some blocks; all are there when this returns in the main process.
    """
    missing = processes.main_first("missing", soft.blocks.open, scratch.guard)
    start = len(teacher) - sum(len(soft.blocks.rows_of(number)) for number in missing)
    progress = SharedProgress(processes, "pseudo_label", len(teacher), "videos", start)

    def pause() -> None:
        progress.add(0)
        scratch.guard()

    for number in processes.deal("blocks", missing):
        rows = soft.blocks.rows_of(number)
        soft.write(number, labeller.probs(rows), teacher[rows])
        progress.add(len(rows))
        scratch.guard()
    processes.join("labelled", pause)
    progress.close()
