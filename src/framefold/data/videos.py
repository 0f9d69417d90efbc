"""Opening the stores of one split together, and choosing the labelled rows that train and those that validate."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from framefold.data.batches import SoftLabels, VideoDataset
from framefold.data.features import FeatureStore
from framefold.data.folds import FILE as FOLDS
from framefold.data.folds import HOLDOUT, Folds
from framefold.data.tokens import SpecialTokens, TokenStore, check_aligned, read_special_tokens
from framefold.errors import UserError
from framefold.params.models import InputParams
from framefold.storage import read_json, read_parquet

TOKENIZER = Path("models/tokenizer")
CATEGORIES = Path("data/samples/categories.json")


@dataclass(frozen=True)
class Videos:
    """Tokens and features of one split: row i is the same video in both."""

    tokens: TokenStore
    features: FeatureStore
    special: SpecialTokens

    def __len__(self) -> int:
        return len(self.tokens)

    def ids(self, rows: npt.NDArray[np.integer]) -> list[str]:
        return self.tokens.ids_at(rows.tolist())

    def dataset(
        self,
        rows: npt.NDArray[np.int64],
        inputs: InputParams,
        labels: npt.NDArray[np.int32] | None = None,
        soft: SoftLabels | None = None,
    ) -> VideoDataset:
        """The videos at `rows`; labels (N,) and soft (N, C) are by row of the split, like the stores."""
        own = None if labels is None else labels[rows]
        return self._dataset_of(self.tokens, self.features, rows, inputs, own, soft, self.special)

    @property
    def _dataset_of(self) -> Callable[..., VideoDataset]:
        return VideoDataset


def open_videos(split: str, encoder: str) -> Videos:
    """What ingest, tokenize and extract_frames left of a split; `Videos.dataset` checks that it belongs together."""
    tokens = TokenStore(Path("data/tokens") / f"{split}.arrow")
    return Videos(tokens, FeatureStore(Path("data/features") / encoder / split), read_special_tokens(TOKENIZER))


def store_paths(split: str, encoder: str) -> list[Path]:
    """What `open_videos` reads, for a stage's fingerprint."""
    return [Path("data/tokens") / f"{split}.arrow", Path("data/features") / encoder / split, TOKENIZER]


def open_labeled(videos: Videos | None = None) -> Folds:
    """Labels, duplicate groups and folds of the labelled videos, checked to be in the order of `videos` when given."""
    table = read_parquet(FOLDS)
    if videos is not None:
        check_aligned(table.column("id").chunks, videos.tokens.iterate_ids(), f"{FOLDS} and {videos.tokens.path}")
    label, group, fold = (table.column(name).to_numpy() for name in ("label", "group", "fold"))
    return Folds(table.column("id").combine_chunks(), label, group, fold)


def read_categories() -> list[str]:
    """The category ids; a label is an index into them."""
    return list(read_json(CATEGORIES)["categories"])


def fold_rows(labeled: Folds, validates: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows that train and rows that validate; `validates` (N,) marks the folds held out. The holdout is in neither.

    Raises UserError when a training video has a duplicate among the validation videos or in the holdout.
    """
    train = np.flatnonzero((labeled.fold != HOLDOUT) & ~validates)
    held_out = np.flatnonzero((labeled.fold == HOLDOUT) | validates)
    leaked = np.isin(labeled.group[train], labeled.group[held_out])
    if np.any(leaked):
        raise UserError(
            f"{FOLDS}: video {labeled.ids[int(train[leaked][0])]} trains while a duplicate of it validates or is in "
            f"the holdout ({int(leaked.sum())} such videos); rebuild the folds with `dvc repro split`"
        )
    if len(train) == 0:
        raise UserError(f"{FOLDS}: no video is left to train on; lower split.holdout or add labelled videos")
    return train, np.flatnonzero((labeled.fold != HOLDOUT) & validates)
