"""Batches of videos: text and frames of one split, padded to the batch, in an order keyed by (seed, epoch).

A batch is the same whenever, wherever and by whichever process it is made: workers, ranks and resumed runs agree.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from framefold.data.order import bucketed_order, length_keys, token_cuts
from framefold.data.tokens import SEGMENTS, SpecialTokens, TokenStore, check_aligned, joined
from framefold.errors import UserError
from framefold.params.models import InputParams

Batch = dict[str, Tensor]
Transform = Callable[[Batch, int, int], Batch]  # (batch, seed, epoch); its randomness is keyed by batch["key"]

BUCKET = 50  # batches' worth of samples that are sorted by length together
NO_LABEL = -1
ORDER = 0  # the key of the order of samples, in the place of a video's
ALL = slice(None)


class Samples(Protocol):
    """What an epoch is cut from: numbered samples that make a batch."""

    def __len__(self) -> int: ...

    def order_keys(self) -> npt.NDArray[np.integer]:
        """(N,): samples with like keys have like shapes."""
        ...

    def batch(self, positions: npt.NDArray[np.int64], draw: tuple[int, int] | None = None, part: slice = ALL) -> Batch:
        """Of the batch `positions` the samples positions[part], those of one process; draw: (seed, epoch) in training,
        None in evaluation. The first tensor has one row a sample."""
        ...

    def names(self, positions: npt.NDArray[np.int64]) -> list[str]:
        """What a person calls the samples at `positions`."""
        ...


@runtime_checkable
class MeasuredSamples(Samples, Protocol):
    """Samples whose batches can be bounded by tokens."""

    def sizes(self) -> npt.NDArray[np.integer]:
        """(N, 2): tokens of text, frames."""
        ...


class Features(Protocol):
    """What a batch needs of a FeatureStore; other holders of features do as well."""

    @property
    def path(self) -> Path: ...
    @property
    def counts(self) -> npt.NDArray[np.int32]: ...
    @property
    def dim(self) -> int: ...

    def iterate_ids(self) -> Iterator[pa.Array]: ...
    def frames(self, row: int, indices: npt.NDArray[np.integer] | None = None) -> npt.NDArray[np.float16]: ...


class SoftLabels(Protocol):
    """Probabilities (N, C) that need not be in memory."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: npt.NDArray[np.integer], /) -> npt.NDArray[np.floating]: ...


class VideoDataset:
    """Videos `rows` of a token store and a feature store, which must hold the same videos in the same order.

    labels: (len(rows),) class indices or None; soft: (len(store), C), probabilities of a teacher, aligned with the
    stores' rows, or None. UserError: the stores are not aligned.
    """

    def __init__(
        self,
        tokens: TokenStore,
        features: Features,
        rows: npt.NDArray[np.integer],
        inputs: InputParams,
        labels: npt.NDArray[np.integer] | None,
        soft: SoftLabels | None,
        special: SpecialTokens,
    ):
        check_aligned(tokens.iterate_ids(), features.iterate_ids(), f"{tokens.path} and {features.path}")
        self.tokens, self.features, self.inputs, self.special = tokens, features, inputs, special
        self.rows = np.asarray(rows, dtype=np.int64)
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.soft = soft
        self._budgets = [getattr(inputs, segment) for segment in SEGMENTS]
        self._cls, self._sep = np.array([special.cls]), np.array([special.sep])
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.rows):
            raise ValueError(f"{len(self.labels)} labels for {len(self.rows)} rows")
        if self.soft is not None and len(self.soft) != len(self.tokens):
            raise UserError(
                f"{len(self.soft)} soft labels for the {len(self.tokens)} videos of {self.tokens.path}; "
                "rebuild them with `dvc repro`"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.integer]:
        """Tokens and frames of the samples at `positions` together, after the budgets."""
        return self._text_lengths()[positions] + self._frame_counts()[positions]

    def order_keys(self) -> npt.NDArray[np.integer]:
        return length_keys(self._text_lengths(), self._frame_counts(), self.inputs.max_frames)

    def sizes(self) -> npt.NDArray[np.integer]:
        """(N, 2): tokens of text, special ones included, and frames, both after the budgets."""
        return np.stack([self._text_lengths(), self._frame_counts()], axis=1)

    def names(self, positions: npt.NDArray[np.integer]) -> list[str]:
        """Ids of the videos at `positions`."""
        return self.tokens.ids_at(self.rows[positions].tolist())

    def batch(
        self, positions: npt.NDArray[np.integer], draw: tuple[int, int] | None = None, part: slice = ALL
    ) -> Batch:
        """Samples at positions[part] as tensors; draw: (seed, epoch) in training. Text is padded to the longest of
        them, frames to the longest of all `positions`: what processes exchange has one shape.

        "index" (B,) int64 position in `rows`; "row" (B,) int64 row of the stores; "key" (B,) int64 per-video hash;
        "input_ids" (B, T) int64, [CLS] title [SEP] asr [SEP] ocr [SEP], an empty segment left out with its [SEP];
        "text_mask" (B, T) bool; "word_starts" (B, T) bool, special tokens included, if the store knows them; "frames"
        (B, F, D) float32, F may be 0; "frame_mask" (B, F) bool; "label" (B,) int64, -1 without labels; "soft" (B, C)
        float32 if given. A video with more than max_frames frames gives a random subset of them in training, uniformly
        spaced ones in evaluation; in their order.
        """
        most_frames = self._most_frames(positions)
        positions = np.asarray(positions, dtype=np.int64)[part]
        rows = self.rows[positions]
        keys = video_keys(self.names(positions))
        labels = np.full(len(rows), NO_LABEL) if self.labels is None else self.labels[positions]
        arrays = {"index": positions, "row": rows, "key": keys, "label": labels}
        input_ids, text_mask = self._text(rows)
        arrays |= {"input_ids": input_ids, "text_mask": text_mask}
        if self.tokens.has_words:
            arrays["word_starts"] = self._word_starts(rows, text_mask)
        arrays["frames"], arrays["frame_mask"] = self._frames(rows, keys, draw, most_frames)
        if self.soft is not None:
            arrays["soft"] = self.soft[rows].astype(np.float32)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def frames(
        self, positions: npt.NDArray[np.int64], draw: tuple[int, int] | None = None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Frames (B, F, D) and their mask (B, F) as `batch` gives them, padded to the longest."""
        keys = video_keys(self.names(positions))
        return self._frames(self.rows[positions], keys, draw, self._most_frames(positions))

    def _most_frames(self, positions: npt.NDArray[np.integer]) -> int:
        counts = self.features.counts[self.rows[positions]]
        return int(min(counts.max(initial=0), self.inputs.max_frames))

    def _text_lengths(self) -> npt.NDArray[np.int32]:
        """(N,) length of input_ids, special tokens included."""
        if self._text_lengths_of_rows is None:
            kept = self.tokens.lengths()  # (N of the store, 3) int32, as is all that is made of it: there are millions
            np.minimum(kept, np.array(self._budgets, np.int32), out=kept)
            total = 1 + kept.sum(1, dtype=np.int32) + (kept > 0).sum(1, dtype=np.int32)
            self._text_lengths_of_rows = np.maximum(total, 2)[self.rows]
        return self._text_lengths_of_rows

    _text_lengths_of_rows: npt.NDArray[np.int32] | None = None

    def _frame_counts(self) -> npt.NDArray[np.int32]:
        return np.minimum(self.features.counts[self.rows], np.int32(self.inputs.max_frames))

    def _text(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        lines = [joined(self.tokens.segments(row), self._budgets, self._cls, self._sep) for row in rows.tolist()]
        lengths = np.array([len(line) for line in lines], dtype=np.int64)
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]  # (B, T)
        input_ids = np.full(mask.shape, self.special.pad, dtype=np.int64)
        if lines:
            input_ids[mask] = np.concatenate(lines)
        return input_ids, mask

    def _word_starts(self, rows: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        one, starts = np.ones(1, np.bool_), np.zeros(mask.shape, dtype=np.bool_)
        lines = [joined(self.tokens.word_starts(row), self._budgets, one, one) for row in rows.tolist()]
        starts[mask] = np.concatenate([*lines, one[:0]])
        return starts

    def _frames(
        self, rows: npt.NDArray[np.int64], keys: npt.NDArray[np.int64], draw: tuple[int, int] | None, most: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        counts = np.minimum(self.features.counts[rows], self.inputs.max_frames)
        mask = np.arange(most) < counts[:, None]  # (B, F)
        frames = np.zeros((*mask.shape, self.features.dim), dtype=np.float32)
        for place, (row, key, count) in enumerate(zip(rows.tolist(), keys.tolist(), counts.tolist(), strict=True)):
            if count:
                frames[place, :count] = self.features.frames(row, self._chosen(row, key, draw))
        return frames, mask

    def _chosen(self, row: int, key: int, draw: tuple[int, int] | None) -> npt.NDArray[np.int64] | None:
        """Which frames of a video are used; None: all."""
        stored, wanted = int(self.features.counts[row]), self.inputs.max_frames
        if stored <= wanted:
            return None
        if draw is None:  # the middles of equal stretches
            return ((np.arange(wanted) + 0.5) * stored / wanted).astype(np.int64)
        return np.sort(sample_rng(*draw, key).permutation(stored)[:wanted])


class EpochBatches(torch.utils.data.Dataset):
    """Batch i of one epoch: shuffled, in buckets of like length (training), or sorted by length (evaluation).

    Every sample comes once, "index" says which it is; sizes of batches differ by at most one, so that no small last
    batch has a louder voice. With `batch_tokens` (MeasuredSamples only) batches are cut by `token_cuts` instead, and
    epochs may differ in their number of batches. `transform(batch, seed, epoch)` comes last.
    UserError: fewer samples than processes in a batch.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        batch_tokens: int | None = None,
        shuffle: bool = True,
        transform: Transform | None = None,
    ):
        self.samples, self.seed, self.epoch, self.shuffle, self.transform = samples, seed, epoch, shuffle, transform
        self.batch_size, self.batch_tokens, self.rank, self.world = batch_size, batch_tokens, 0, 1
        self.rng = sample_rng(seed, epoch, ORDER) if shuffle else None
        turning = batch_tokens is not None
        self.order = bucketed_order(samples.order_keys(), batch_size * BUCKET, self.rng, turning)
        self._cut()

    def _cut(self) -> None:
        """Where batches begin and end in `order`, and whose turn comes when."""
        if self.batch_tokens is None:
            count = math.ceil(len(self.samples) / self.batch_size)
            self.cuts = np.linspace(0, len(self.samples), count + 1).round().astype(np.int64)
        else:
            assert isinstance(self.samples, MeasuredSamples)
            self.cuts = token_cuts(self.samples.sizes()[self.order], self.batch_size, self.batch_tokens, self.world)
        count = len(self.cuts) - 1
        self.turns = copy.deepcopy(self.rng).permutation(count) if self.rng else np.arange(count)

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, index: int) -> Batch:
        draw = (self.seed, self.epoch) if self.shuffle else None
        batch = self.samples.batch(self._positions(index), draw, slice(self.rank, None, self.world))
        return self.transform(batch, self.seed, self.epoch) if self.transform else batch

    def _positions(self, index: int) -> npt.NDArray[np.int64]:
        """Of all samples of batch `index`, over all processes."""
        turn = self.turns[index]
        return self.order[self.cuts[turn] : self.cuts[turn + 1]]

    def global_size(self, index: int) -> int:
        """Samples of batch `index` over all processes."""
        return len(self._positions(index))

    def names(self, index: int) -> list[str]:
        """Of this process's samples of batch `index`."""
        return self.samples.names(self._positions(index)[self.rank :: self.world])

    def shard(self, rank: int, world: int) -> Self:
        """The part of every batch that belongs to process `rank` of `world`."""
        part = copy.copy(self)
        part.rank, part.world = rank, world
        part._cut()
        smallest = int(np.diff(part.cuts).min(initial=world))
        if smallest < world:
            raise UserError(f"a batch of {smallest} samples for {world} processes; raise batch_size or use fewer")
        return part


def video_keys(ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """(B,) 63-bit hashes of ids, the same in every process: what per-video randomness is keyed by."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return (np.frombuffer(digests, dtype="<u8") >> np.uint64(1)).astype(np.int64)


def sample_rng(seed: int, epoch: int, key: int) -> np.random.Generator:
    """Random numbers of one sample in one epoch; seed, epoch and key are not negative (about 10 us to make)."""
    return np.random.Generator(np.random.SFC64([seed, epoch, key]))
