"""What is scored: out-of-fold and holdout videos by data/folds.parquet, test videos where their truth is known."""

import csv
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from framefold.data.folds import HOLDOUT
from framefold.errors import UserError
from framefold.storage import read_json, read_parquet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabeledVideos:
    """The labelled videos in store order. Light: stages that only score need no torch for it."""

    ids: list[str]
    labels: np.ndarray  # (N,) indices into categories
    groups: np.ndarray  # (N,) duplicate groups
    folds: np.ndarray  # (N,) validation fold, or HOLDOUT
    categories: list[str]

    def out_of_fold_rows(self, folds: Iterable[int]) -> np.ndarray:
        """Rows that validate one of the trained `folds`, in store order."""
        return np.flatnonzero(np.isin(self.folds, list(folds)))

    def holdout_rows(self) -> np.ndarray:
        return np.flatnonzero(self.folds == HOLDOUT)

    def training_rows(self) -> np.ndarray:
        return np.flatnonzero(self.folds != HOLDOUT)

    def ids_of(self, rows: np.ndarray) -> list[str]:
        return [self.ids[row] for row in rows]

    def class_sizes(self) -> np.ndarray:
        """(C,) labelled videos per category, the holdout left out."""
        return np.bincount(self.labels[self.training_rows()], minlength=len(self.categories))


def read_labeled() -> LabeledVideos:
    table = read_parquet("data/folds.parquet", columns=["id", "label", "group", "fold"])
    labels, groups, folds = (table[name].to_numpy() for name in ("label", "group", "fold"))
    categories = list(read_json("data/samples/categories.json")["categories"])
    return LabeledVideos(table["id"].to_pylist(), labels, groups, folds, categories)


class Target(NamedTuple):
    """Videos whose labels are known, by their rows in a prediction array."""

    rows: np.ndarray  # (M,)
    labels: np.ndarray  # (M,) indices into categories
    categories: list[str]  # the models' own, then those that only a test truth knows


def read_targets(
    labeled: LabeledVideos, folds: Iterable[int], root: Path | str, test_ids: Sequence[str]
) -> dict[str, Target]:
    """out_of_fold, holdout and test, where they have any video; predictions stand in store order of each part."""
    targets = {}
    for name, rows in (("out_of_fold", labeled.out_of_fold_rows(folds)), ("holdout", labeled.holdout_rows())):
        targets[name] = Target(np.arange(len(rows)), labeled.labels[rows], labeled.categories)
    targets["test"] = read_test_truth(root, test_ids, labeled.categories)
    return {name: target for name, target in targets.items() if len(target.rows)}


def read_test_truth(root: Path | str, ids: Sequence[str], categories: Sequence[str]) -> Target:
    """Without rows where there is no test_truth.csv. Videos that it does not name are left out, and counted."""
    path = Path(root) / "annotations" / "test_truth.csv"
    if not path.is_file():
        return Target(np.zeros(0, np.int64), np.zeros(0, np.int64), list(categories))
    truth = dict(read_pairs(path))
    rows = np.array([row for row, video in enumerate(ids) if video in truth], dtype=np.int64)
    known = [truth[ids[row]] for row in rows]
    strangers = len(truth) - len(rows)
    log.info(f"{path}: {len(rows)} of {len(ids)} test videos have a truth; {strangers} of its ids are no test videos")
    extended = [*categories, *sorted(set(known) - set(categories))]
    position = {category: i for i, category in enumerate(extended)}
    labels = np.array([position[category] for category in known], dtype=np.int64)
    return Target(rows, labels, extended)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """(id, category id) of every line; a header line is skipped. UserError names the first line that is none."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected lines `id,category_id`") from None
    pairs = lines[1:] if lines and lines[0][0] == "id" else lines
    bad = next((line for line in pairs if len(line) != 2), None)
    if bad is not None:
        raise UserError(f"{path}: {','.join(bad)[:80]!r} is no `id,category_id`; correct or remove the line")
    if len({video for video, _ in pairs}) != len(pairs):
        raise UserError(f"{path}: some ids stand there more than once; keep one line each")
    return [(video, category) for video, category in pairs]
