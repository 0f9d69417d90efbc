"""Soft labels of the store as training uses them: which are sure enough, and what they weigh by class."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from framefold.data.array_files import ArrayFile
from framefold.params.labels import LabelParams

BLOCK = 65536  # rows that are looked at together
NO_CLASS = -1
Floats = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class SoftTargets:
    """Targets (N, C), made of stored probabilities when they are asked for; `weights` (C,): times that of their class.

    A row of zeros: no label.
    """

    labels: ArrayFile
    weights: Floats | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.labels.shape

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.floating]:
        """(len(rows), C)."""
        soft = self.labels[rows]
        return soft if self.weights is None else soft * self.weights[soft.argmax(axis=1)][:, None]


def used_classes(soft: ArrayFile, params: LabelParams) -> Classes:
    """(N,): the best class of every row, NO_CLASS where training does not use it; 4 bytes a row stay in memory."""
    classes = np.full(len(soft), NO_CLASS, np.int32)
    for start in range(0, len(soft), BLOCK):
        block = soft.rows(start, min(BLOCK, len(soft) - start)).astype(np.float32)
        best = block.max(axis=1)
        used = (best > 0) & (best >= params.min_confidence * block.sum(axis=1))  # stored sums are 1 but for rounding
        classes[start : start + len(block)] = np.where(used, block.argmax(axis=1), NO_CLASS)
    return classes


def label_weights(soft: ArrayFile, rows: npt.NDArray[np.integer], params: LabelParams) -> Floats | None:
    """(C,) what a label of each best class counts, 1 on average over the used labels of `rows`; None: each 1."""
    if not params.balance:
        return None
    return class_weights(used_classes(soft, params)[rows], soft.shape[-1], params.balance)


def class_weights(classes: Classes, n_classes: int, power: float) -> Floats:
    """(C,) n_c^-power, with mean 1 over the labels `classes` (N,); 1 for absent classes."""
    sizes = np.bincount(classes[classes >= 0], minlength=n_classes).astype(np.float64)
    weights = np.maximum(sizes, 1) ** -power
    total = (sizes * weights).sum()
    weights *= sizes.sum() / total if total else 1
    return np.where(sizes > 0, weights, 1).astype(np.float32)
