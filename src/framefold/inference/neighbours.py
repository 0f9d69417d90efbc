"""Labels by the vote of the nearest labelled videos, in the states that a model's classification head reads.

A model's neighbours are the videos that it was trained on: never the holdout, nor the fold that it is to judge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framefold.data.batches import VideoDataset
from framefold.data.folds import Folds, teacher_fold
from framefold.data.pseudo_labels import TrainedFolds
from framefold.inference.blocks import BlockFolder
from framefold.inference.predict import block_outputs
from framefold.inference.processes import Processes
from framefold.scratch import Scratch

QUERIES = 256  # compared with all neighbours at a time: with 100,000 of them that is 100 MB
LEAST = 1e-6  # weight of a neighbour that points away: a vote always has a result


def logits_and_states(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(B, C) and the pooled states (B, P) that they are made of."""
    pooled = model.encode(batch).pooled
    return model.head(pooled), pooled


@dataclass(frozen=True)
class Neighbours:
    """Labelled videos of one model; `states` (R, P) of unit length, `labels` (R,), on one device."""

    states: Tensor
    labels: Tensor
    k: int
    n_classes: int

    @torch.inference_mode()
    def vote(self, states: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities (B, C): the labels of the k nearest to states (B, P), weighted by cosine similarity."""
        queries = torch.from_numpy(states).to(self.states.device)
        return torch.cat([self._vote(part) for part in queries.split(QUERIES)]).cpu().numpy()

    def _vote(self, queries: Tensor) -> Tensor:
        similarity = F.normalize(queries, dim=-1) @ self.states.T  # (B, R)
        nearest, places = similarity.topk(min(self.k, len(self.states)), dim=-1)
        votes = nearest.new_zeros(len(queries), self.n_classes)
        votes.scatter_add_(1, self.labels[places], nearest.clamp(min=LEAST))
        return votes / votes.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class LabelledStates:
    """Where the states of labelled videos are kept while the pool is labelled: blocks per model, as for soft labels."""

    folder: Path
    labeled: Folds
    dataset: VideoDataset  # of all labelled videos, in their order
    settings: Mapping[str, Any]  # batch_size, device and precision of `block_outputs`

    def compute(self, models: Mapping[int, Sequence[nn.Module]], scratch: Scratch, processes: Processes) -> None:
        """The states of all models. Processes share the work; all of it is there when this returns in any of them."""
        every = [(teacher, place) for teacher, members in models.items() for place in range(len(members))]
        missing = processes.main_first(
            "missing states",
            lambda: [(*model, number) for model in every for number in self._blocks(*model).open()],
            scratch.guard,
        )
        for teacher, place, number in processes.deal("states", missing):
            blocks = self._blocks(teacher, place)
            rows = blocks.rows_of(number)
            ((_, states),) = block_outputs(
                [models[teacher][place]], self.dataset, rows, logits_and_states, **self.settings
            )
            blocks.write(number, states)
            scratch.guard()
        processes.join("embedded", scratch.guard)
        processes.main_first("all states", lambda: None, scratch.guard)

    def neighbours(
        self, models: Mapping[int, Sequence[nn.Module]], trained_folds: TrainedFolds, k: int, n_classes: int
    ) -> dict[int, list[Neighbours]]:
        """Those of every model: the videos of the folds that it was trained on."""
        return {
            teacher: [self._of(teacher, place, trained_folds[teacher], k, n_classes) for place in range(len(members))]
            for teacher, members in models.items()
        }

    def out_of_fold(
        self, neighbours: Mapping[int, Sequence[Neighbours]], n_folds: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Labels (N,) of the videos of all teachers' folds and the votes on them (N, C), by who never saw them."""
        rows = {teacher: np.flatnonzero(teacher_fold(self.labeled.fold, n_folds) == teacher) for teacher in neighbours}
        votes = [
            np.mean([one.vote(self.states(teacher, place)[rows[teacher]]) for place, one in enumerate(own)], axis=0)
            for teacher, own in neighbours.items()
        ]
        return self.labeled.label[np.concatenate(list(rows.values()))].astype(np.int64), np.concatenate(votes)

    def states(self, teacher: int, place: int) -> npt.NDArray[np.float32]:
        """(N, P) of the labelled videos."""
        return np.concatenate(list(self._blocks(teacher, place)))

    def _of(self, teacher: int, place: int, folds: Sequence[int], k: int, n_classes: int) -> Neighbours:
        rows = np.isin(self.labeled.fold, list(folds))
        states = torch.from_numpy(self.states(teacher, place)[rows]).to(self.settings["device"])
        labels = torch.from_numpy(self.labeled.label[rows].astype(np.int64)).to(states.device)
        return Neighbours(F.normalize(states, dim=-1), labels, k, n_classes)

    def _blocks(self, teacher: int, place: int) -> BlockFolder:
        return BlockFolder(self.folder / f"states-{teacher}-{place}", len(self.dataset))
