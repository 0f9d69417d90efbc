"""Frame-title pairs of the unlabelled pool: one random frame a video and epoch, lightly augmented."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from framefold.data.batches import ALL, Batch, sample_rng, video_keys
from framefold.data.folds import Folds, excluded_groups, read_test_groups
from framefold.data.frames import FrameError, current_members, decode_jpeg, unpack_frames
from framefold.data.images import Preprocess
from framefold.data.manifest import ManifestEntry, SplitManifest, is_frame, refusal, zip_path
from framefold.data.samples import read_columns
from framefold.data.tokens import TokenStore, check_aligned
from framefold.data.zip_directory import ZipError
from framefold.params.encoders import AdaptParams

Pixels = npt.NDArray[np.uint8]  # [image_size, image_size, 3]


def usable_rows(tokens: TokenStore, labeled: Folds) -> npt.NDArray[np.int64]:
    """Rows of the pool with a title and frames, of which no duplicate is in the holdout or the test split."""
    samples = read_columns("unlabeled", ["id", "group", "frames"])
    check_aligned(samples.column("id"), tokens.ids, f"data/samples/unlabeled.parquet and {tokens.path}")
    excluded = np.isin(samples.column("group").to_numpy(), excluded_groups(labeled, read_test_groups()))
    has_both = (samples.column("frames").to_numpy() > 0) & (tokens.lengths()[:, 0] > 0)
    return np.flatnonzero(has_both & ~excluded)


class PairSamples:
    """Pairs of the videos `rows`, as `EpochBatches` wants them.

    A batch: "pixels" (B, S, S, 3) uint8; "has_frame" (B,) bool, false for a video none of whose frames can be decoded;
    "input_ids" (B, T) int64, the title's first tokens without special ones; "text_mask" (B, T) bool. In training
    frame, crop and flip are drawn from (seed, epoch, video); in evaluation it is the middle frame as it is.
    """

    def __init__(
        self,
        root: Path | str,
        tokens: TokenStore,
        rows: npt.NDArray[np.integer],
        preprocess: Preprocess,
        params: AdaptParams,
        manifest: SplitManifest,
    ):
        self.root, self.tokens, self.preprocess, self.manifest = Path(root), tokens, preprocess, manifest
        self.rows, self.max_tokens, self.min_crop = np.asarray(rows, np.int64), params.max_tokens, params.min_crop

    def __len__(self) -> int:
        return len(self.rows)

    def order_keys(self) -> npt.NDArray[np.int64]:
        return np.zeros(len(self.rows), np.int64)  # all alike: negatives are drawn from all lengths

    def names(self, positions: npt.NDArray[np.int64]) -> list[str]:
        return self.tokens.ids.take(self.rows[positions]).to_pylist()

    def batch(self, positions: npt.NDArray[np.int64], draw: tuple[int, int] | None = None, part: slice = ALL) -> Batch:
        rows, ids = self.rows[positions[part]], self.names(positions[part])
        keys = video_keys(ids).tolist()
        images = [
            self._image(video_id, sample_rng(*draw, key) if draw else None)
            for video_id, key in zip(ids, keys, strict=True)
        ]
        blank = np.zeros((self.preprocess.image_size, self.preprocess.image_size, 3), np.uint8)
        input_ids, mask = self._titles(rows)
        return {
            "pixels": torch.from_numpy(np.stack([blank if image is None else image for image in images])),
            "has_frame": torch.tensor([image is not None for image in images]),
            "input_ids": torch.from_numpy(input_ids),
            "text_mask": torch.from_numpy(mask),
        }

    def _titles(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        titles = [self.tokens.segments(row)[0][: self.max_tokens] for row in rows.tolist()]
        lengths = np.array([len(title) for title in titles])
        mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
        input_ids = np.zeros(mask.shape, np.int64)
        input_ids[mask] = np.concatenate(titles)
        return input_ids, mask

    def _image(self, video_id: str, rng: np.random.Generator | None) -> Pixels | None:
        """The first frame in the order tried that is a whole image."""
        entry = self.manifest.find(video_id)
        for data in frames_in_turn(self.root, entry, rng) if entry is not None else []:
            try:
                if rng is None:
                    return self.preprocess.pixels(data)
                return self.preprocess.random_crop(decode_jpeg(data, self.preprocess.image_size), rng, self.min_crop)
            except FrameError:
                continue
        return None


def frames_in_turn(root: Path, entry: ManifestEntry, rng: np.random.Generator | None) -> Iterator[bytes]:
    """Image files of a video, one by one: in random order, or without `rng` from the middle on. UserError: changed."""
    path = zip_path(root, entry.split, entry.id)
    try:
        with open(path, "rb", buffering=0) as file:
            members = [one for one in current_members(file, path, root, entry) if is_frame(one) and not refusal(one)]
            order = np.roll(np.arange(len(members)), -((len(members) - 1) // 2))
            for index in order if rng is None else rng.permutation(len(members)):
                yield from (data for _, data in unpack_frames(file, [members[index]], 1).frames)
    except (OSError, ZipError):
        return
