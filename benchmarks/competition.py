"""The reference of benchmarks/training.py: one training step as the competition's solutions took it.

What is written down here, after the public baseline of the WeChat Big Data Challenge 2022 and solutions built on it:
text is tokenised and a zip opened for every sample, each time it comes; text is padded to 258 tokens and frames to 32;
Python collates sample by sample; fp32; word logits at every position; AdamW in a plain loop. In the reference's favour:
its zips hold features, where the competition also decoded and encoded images, and no EMA and no clipping is done.
"""

import io
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import BertTokenizerFast  # type: ignore[attr-defined]

from benchmarks.competition_model import Pretraining

TEXT_LENGTH, FRAMES = 258, 32
POSITIONS = TEXT_LENGTH + FRAMES
KEEP, RANDOM = 0.1, 0.1  # of the tokens that are predicted: left as they are, replaced
LEARNING_RATE = 5e-5

Sample = dict[str, Any]
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Way:
    """What is done the competition's way. benchmarks/training.py also turns each off, to see what it costs."""

    full_length: bool = True  # False: padded to the longest of the batch
    fp32: bool = True  # False: bf16 where the CPU multiplies in it
    all_positions: bool = True  # False: word logits at the hidden tokens alone
    on_the_fly: bool = True  # False: tokens and features are in memory


def open_tokenizer(vocabulary: Path) -> BertTokenizerFast:
    """ValueError: transformers did not take the vocabulary (a wrong argument name is ignored in silence)."""
    entries = vocabulary.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizerFast(vocab={entry: number for number, entry in enumerate(entries)})
    if len(tokenizer) != len(entries):
        raise ValueError(f"{vocabulary}: {len(entries)} entries, the tokenizer has {len(tokenizer)}")
    return tokenizer


def zip_path(root: Path, video_id: str) -> Path:
    return root / video_id[-3:] / f"{video_id}.zip"


class Videos(Dataset):
    """One sample at a time: {"ids": list of int, "frames": float32 [n, dim], "soft": float32 [C]}."""

    def __init__(
        self,
        root: Path,
        records: list[dict[str, str]],
        soft: np.ndarray,
        tokenizer: BertTokenizerFast,
        budgets: dict[str, int],
        on_the_fly: bool,
    ):
        self.root, self.records, self.soft = root, records, soft
        self.tokenizer, self.budgets = tokenizer, budgets
        self.kept: dict[int, Sample] | None = None if on_the_fly else {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        if self.kept is None:
            return self.read(index)
        if index not in self.kept:
            self.kept[index] = self.read(index)
        return self.kept[index]

    def read(self, index: int) -> Sample:
        record = self.records[index]
        return {"ids": self.tokens(record), "frames": self.frames(record["id"]), "soft": self.soft[index]}

    def tokens(self, record: dict[str, str]) -> list[int]:
        ids = [self.tokenizer.cls_token_id]
        for segment, budget in self.budgets.items():
            tokens = self.tokenizer(record[segment], add_special_tokens=False, truncation=True, max_length=budget)
            if tokens["input_ids"]:
                ids += [*tokens["input_ids"], self.tokenizer.sep_token_id]
        return ids if len(ids) > 1 else [*ids, self.tokenizer.sep_token_id]

    def frames(self, video_id: str) -> np.ndarray:
        with zipfile.ZipFile(zip_path(self.root, video_id)) as archive:
            return np.load(io.BytesIO(archive.read(f"{video_id}.npy"))).astype(np.float32)


@dataclass(frozen=True)
class Collator:
    """Samples to a batch, one by one, with tokens and frames hidden."""

    tokenizer: BertTokenizerFast
    full_length: bool
    rate: float  # of tokens that are predicted
    frame_rate: float
    mismatched: float  # share of the texts that are also shown with the frames of another video

    def __call__(self, samples: list[Sample]) -> Batch:
        length = TEXT_LENGTH if self.full_length else max(len(sample["ids"]) for sample in samples)
        frames = FRAMES if self.full_length else max(len(sample["frames"]) for sample in samples)
        ids, masks, videos, video_masks = [], [], [], []
        for sample in samples:
            missing = length - len(sample["ids"])
            ids.append(torch.tensor(sample["ids"] + missing * [self.tokenizer.pad_token_id]))
            masks.append(torch.tensor(len(sample["ids"]) * [1] + missing * [0]))
            video, missing = torch.from_numpy(sample["frames"]), frames - len(sample["frames"])
            videos.append(torch.cat([video, torch.zeros(missing, video.shape[1])]))
            video_masks.append(torch.tensor(len(video) * [1] + missing * [0]))
        batch = {"input_ids": torch.stack(ids), "text_mask": torch.stack(masks)}
        batch |= {"frames": torch.stack(videos), "frame_mask": torch.stack(video_masks)}
        batch["soft"] = torch.stack([torch.from_numpy(sample["soft"]) for sample in samples])
        return batch | self.hide(batch) | self.mismatch(batch)

    def hide(self, batch: Batch) -> Batch:
        ids, special = batch["input_ids"], torch.tensor(self.tokenizer.all_special_ids)
        hidden = (torch.rand(ids.shape) < self.rate) & ~torch.isin(ids, special)
        fate = torch.rand(ids.shape)
        masked = ids.masked_fill(hidden & (fate >= KEEP + RANDOM), self.tokenizer.mask_token_id)
        random = torch.randint(len(self.tokenizer), ids.shape)
        masked = torch.where(hidden & (fate >= KEEP) & (fate < KEEP + RANDOM), random, masked)
        frames = (torch.rand(batch["frame_mask"].shape) < self.frame_rate) & batch["frame_mask"].bool()
        return {"masked_ids": masked, "hidden_tokens": hidden, "hidden_frames": frames}

    def mismatch(self, batch: Batch) -> Batch:
        videos = len(batch["frames"])
        rows = torch.randperm(videos)[: math.ceil(self.mismatched * videos)]
        partners = (rows + videos // 2) % videos
        frames = {"pair_frames": batch["frames"][partners], "pair_frame_mask": batch["frame_mask"][partners]}
        return {"pair_rows": rows} | frames


class Reference:
    """Trains on the batches it is given, by the numbers of their videos."""

    def __init__(self, model: Pretraining, videos: Videos, collator: Collator, way: Way):
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.videos, self.collator, self.way = videos, collator, way

    def train(self, batches: list[list[int]], workers: int) -> None:
        loader: DataLoader = DataLoader(
            self.videos, batch_sampler=batches, collate_fn=self.collator, num_workers=workers
        )
        for batch in loader:
            with torch.autocast("cpu", torch.bfloat16, enabled=not self.way.fp32):
                loss, _ = self.model(batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
