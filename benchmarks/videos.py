"""Generated videos that benchmarks train and predict on, in the library's own stores."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from framefold.data.annotations import join_ocr, normalize
from framefold.data.batches import EpochBatches, VideoDataset
from framefold.data.demo.text import NO_SCREEN_TEXT, Language
from framefold.data.demo.transcript import transcribe
from framefold.data.demo.world import build_world
from framefold.data.features import FeatureStore, write_store
from framefold.data.shards import KeptShards
from framefold.data.tokens import SpecialTokens, TokenStore, token_writer
from framefold.params.base import load
from framefold.params.demo import DemoParams
from framefold.params.ingest import IngestParams
from framefold.params.models import InputParams

FEATURES, TOKENS = "features", "tokens.arrow"
SHARD_VIDEOS = 1024

Segments = Sequence[Sequence[npt.ArrayLike]]  # title, asr and ocr of all videos


def demo_records(count: int, seed: int) -> list[dict[str, str]]:
    """id, title, asr and ocr of videos as the demo writes them and `ingest` leaves them."""
    params, max_text = load(DemoParams), load(IngestParams).max_text
    rng, language = np.random.default_rng([seed, count]), Language(build_world(params), params.seed)
    records = []
    for number in range(count):
        words = language.draw(rng, int(rng.integers(params.categories)))
        drawn: dict[str, Any] = transcribe(rng, language, words, on_screen=bool(rng.random() >= NO_SCREEN_TEXT))
        texts = {name: normalize(drawn[name], max_text) for name in ("title", "asr")}
        texts["ocr"] = join_ocr([line["text"] for line in drawn["ocr"]], max_text)
        records.append({"id": f"{10**18 + number}"} | texts)
    return records


def write_stores(
    folder: Path, ids: list[str], segments: Segments, vocabulary: int, counts: npt.NDArray[np.integer], dim: int
) -> None:
    """Token store and feature store of `ids`; features are random numbers."""
    rng = np.random.default_rng(len(ids))
    with token_writer(folder / TOKENS, vocabulary) as writer:
        writer.write(pa.array(ids), [pa.array(part, pa.list_(pa.int64())) for part in segments])
    kept, keys = KeptShards(folder / "parts", dim), list[str]()
    for start in range(0, len(ids), SHARD_VIDEOS):
        part = slice(start, start + SHARD_VIDEOS)
        frames = rng.normal(size=(int(counts[part].sum()), dim)).astype(np.float16)
        keys.append(str(start))
        kept.write(keys[-1], ids[part], counts[part].tolist(), frames, [])
    write_store(folder / FEATURES, kept, keys, {})


def open_dataset(folder: Path, inputs: InputParams, special: SpecialTokens, classes: int) -> VideoDataset:
    """All videos of the stores, with soft labels that are drawn anew, the same each time."""
    tokens, features = TokenStore(folder / TOKENS), FeatureStore(folder / FEATURES)
    soft = np.random.default_rng(0).dirichlet(np.ones(classes), len(tokens)).astype(np.float16)
    return VideoDataset(tokens, features, np.arange(len(tokens)), inputs, None, soft, special)


@dataclass(frozen=True)
class RepeatedBatches:
    """An epoch of `count` batches for the training loop: those of `batches`, from the first again after the last."""

    batches: EpochBatches
    count: int

    @property
    def samples(self) -> int:
        return sum(map(self.global_size, range(self.count)))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.batches[index % len(self.batches)]

    def global_size(self, index: int) -> int:
        return self.batches.global_size(index % len(self.batches))

    def names(self, index: int) -> list[str]:
        return self.batches.names(index % len(self.batches))

    def shard(self, rank: int, world: int) -> Self:
        return replace(self, batches=self.batches.shard(rank, world))
