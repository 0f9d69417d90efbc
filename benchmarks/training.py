"""Pretraining against the competition's way of doing it: python -m benchmarks.training

Both train on the same videos, in the same batches, in turns within one run: the real training loop on a few batches,
then the reference (benchmarks/competition.py) on the same ones, and so on. Sizes: the demo's student, and 4 layers of
256 units, that one also with texts and frames as long as the real ones. Last line: the figures of docs/benchmarks.md.
"""

import argparse
import logging
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.competition import Collator, Reference, Videos, Way, open_tokenizer, zip_path
from benchmarks.competition_model import Pretraining, Sizes
from benchmarks.figures import Figures, median, report, rounded, scratch_project, use_all_cores
from benchmarks.names import ARCHS
from benchmarks.ours import pretraining_batches, run_loop
from benchmarks.videos import RepeatedBatches, demo_records, open_dataset, write_stores
from framefold.data.batches import VideoDataset
from framefold.data.tokenizer import Tokenizer, train_or_load
from framefold.errors import command
from framefold.models.registry import architecture, build_with_mlm_head
from framefold.params.base import load, load_value
from framefold.params.demo import DemoParams
from framefold.params.encoders import EncoderParams
from framefold.params.models import InputParams, StudentParams, TextModelParams, TextSizes
from framefold.params.pretrain import PretrainParams
from framefold.params.text import TextParams
from framefold.runtime import load_runtime, resolve_precision, seed_everything
from framefold.training.pretraining import PretrainingModel
from framefold.training.tasks import PretrainingTask

log = logging.getLogger(__name__)

TEXTS = ("title", "asr", "ocr")
MAX_UNKNOWN = 0.02  # of the reference's tokens
LONG_INPUTS = InputParams(title=86, asr=84, ocr=84, max_frames=32)
LONG_TEXTS = 4  # texts of the demo that make one of about 150 tokens
AS_REFERENCE = Way()
TURNED_OFF = {  # one at a time, then all
    "padding": Way(full_length=False),
    "bf16": Way(fp32=False),
    "mlm_positions": Way(all_positions=False),
    "prepared_input": Way(on_the_fly=False),
    "all_four": Way(full_length=False, fp32=False, all_positions=False, on_the_fly=False),
}


@dataclass(frozen=True)
class Setting:
    """What is measured: sizes of the text model, inputs, and how much of it."""

    name: str
    sizes: TextSizes
    inputs: InputParams
    videos: int
    batch_size: int
    batches: int  # of one turn
    rounds: int  # turns of each, after one that warms up
    texts: int = 1  # of the demo in one text
    ablate: bool = False


def settings() -> list[Setting]:
    student, batch = load(StudentParams), load(PretrainParams).batch_size
    assert student.text.sizes is not None
    demo = student.text.sizes
    larger = demo.model_copy(update={"layers": 4, "hidden": 256, "heads": 4, "intermediate": 1024})
    long = larger.model_copy(update={"max_positions": 512})
    return [
        Setting("demo", demo, student.inputs, 3200, batch, batches=3, rounds=3, ablate=True),
        Setting("4x256", larger, student.inputs, 3200, batch, batches=2, rounds=3),
        Setting("4x256_long", long, LONG_INPUTS, 1600, batch, batches=1, rounds=3, texts=LONG_TEXTS),
    ]


def rehearsal() -> list[Setting]:
    sizes = settings()[0].sizes.model_copy(update={"layers": 1, "hidden": 32, "intermediate": 64})
    tiny = replace(settings()[0], name="tiny", sizes=sizes, videos=400, batch_size=8, batches=1, rounds=1)
    return [tiny]


# Data


@dataclass(frozen=True)
class Data:
    """The same videos twice: in our stores, and as annotations with a zip each."""

    folder: Path
    records: list[dict[str, str]]
    tokenizer: Tokenizer
    dataset: VideoDataset

    @property
    def soft(self) -> np.ndarray:
        assert self.dataset.soft is not None
        return self.dataset.soft[np.arange(len(self.dataset))].astype(np.float32)


def make_data(folder: Path, setting: Setting) -> Data:
    demo, rng = load(DemoParams), np.random.default_rng(setting.videos)
    records = longer(demo_records(setting.videos * setting.texts, seed=0), setting.texts)
    tokenizer = train_or_load(load(TextParams), lambda: (record[name] for record in records for name in TEXTS))
    tokenizer.save(folder)
    segments = [tokenizer.encode_batch([record[name] for record in records]) for name in TEXTS]
    most = setting.inputs.max_frames
    counts = rng.integers(min(demo.min_frames, most) if setting.texts == 1 else most, most + 1, len(records))
    write_stores(folder, [record["id"] for record in records], segments, tokenizer.special.size, counts, feature_dim())
    dataset = open_dataset(folder, setting.inputs, tokenizer.special, demo.categories)
    for row, record in enumerate(records):
        write_zip(zip_path(folder / "zips", record["id"]), record["id"], dataset.features.frames(row))
    return Data(folder, records, tokenizer, dataset)


def longer(records: list[dict[str, str]], texts: int) -> list[dict[str, str]]:
    """Each `texts` records as one."""
    parts = [records[start : start + texts] for start in range(0, len(records), texts)]
    return [part[0] | {name: " ".join(record[name] for record in part).strip() for name in TEXTS} for part in parts]


def feature_dim() -> int:
    encoder = load(EncoderParams, f"encoders.{load(StudentParams).encoder}")
    assert encoder.config is not None
    return int(encoder.config["embed_dim"])


def write_zip(path: Path, video_id: str, features: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive, archive.open(f"{video_id}.npy", "w") as member:
        np.save(member, features)


# Models


def our_model(arch: str, setting: Setting, data: Data) -> PretrainingModel:
    """As stages/pretrain.py builds it, from scratch."""
    params, text = load(PretrainParams), TextModelParams(folder=None, sha256=None, sizes=setting.sizes)
    shape = data.tokenizer.special.size, data.dataset.features.dim, load(DemoParams).categories
    backbone, head = build_with_mlm_head(arch, text, arch_params(arch, setting), *shape)
    return PretrainingModel(backbone, head, params.weights[arch], params)  # type: ignore[index]


def arch_params(arch: str, setting: Setting) -> Any:
    params = load(architecture(arch).Params, f"models.{arch}")
    return params.model_copy(update={"heads": setting.sizes.heads}) if hasattr(params, "heads") else params


def reference_sizes(setting: Setting, data: Data) -> Sizes:
    pretrain, sizes, fusion = load(PretrainParams), setting.sizes, arch_params("dual_stream", setting)
    return Sizes(
        vocabulary=data.tokenizer.special.size,
        layers=sizes.layers,
        hidden=sizes.hidden,
        heads=sizes.heads,
        intermediate=sizes.intermediate,
        positions=512,  # as published checkpoints have; 290 are needed
        dropout=sizes.dropout,
        feature_dim=data.dataset.features.dim,
        classes=load(DemoParams).categories,
        head_hidden=fusion.head_hidden,
        model_dropout=fusion.dropout,
        fusion_layers=fusion.layers,
        fusion_heads=fusion.heads,
        contrast_dim=pretrain.contrast.embed_dim,
        temperature=pretrain.contrast.temperature,
    )


def open_reference(arch: str, setting: Setting, data: Data, way: Way) -> Reference:
    params, tokenizer = load(PretrainParams), open_tokenizer(data.folder / "vocab.txt")
    budgets = {name: getattr(setting.inputs, name) for name in TEXTS}
    videos = Videos(data.folder / "zips", data.records, data.soft, tokenizer, budgets, way.on_the_fly)
    check_unknown(videos)
    rates = params.masking.rate, params.masking.frame_rate, params.mismatched.share
    collator = Collator(tokenizer, way.full_length, *rates)
    weights = params.weights[arch].model_dump()  # type: ignore[index]
    model = Pretraining(arch, reference_sizes(setting, data), weights, way.all_positions)
    return Reference(model, videos, collator, way)


def check_unknown(videos: Videos) -> None:
    ids = [token for record in videos.records[:200] for token in videos.tokens(record)]
    unknown = ids.count(videos.tokenizer.unk_token_id) / len(ids)
    if unknown > MAX_UNKNOWN:
        raise ValueError(f"the reference's tokens are {unknown:.1%} [UNK]: its tokenizer does not know the vocabulary")


# Measuring


class Turns:
    """Gives the loop its epochs, and when one is done lets the others do the same; keeps the seconds of each."""

    def __init__(self, batches: RepeatedBatches, others: Mapping[str, Callable[[], None]]):
        self.batches, self.others = batches, others
        self.seconds: dict[str, list[float]] = {name: [] for name in ("ours", *others)}

    def start(self, epoch: int) -> RepeatedBatches:
        self.started = time.perf_counter()
        return self.batches

    def finish(self, epoch: int, model: nn.Module, ema: nn.Module) -> dict[str, Any]:
        self.keep(epoch, "ours", self.started)
        for name, work in self.others.items():
            started = time.perf_counter()
            work()
            self.keep(epoch, name, started)
        return {}

    def keep(self, epoch: int, name: str, started: float) -> None:
        if epoch:  # the first warms up
            self.seconds[name].append(time.perf_counter() - started)


def compare(arch: str, setting: Setting, data: Data) -> tuple[dict[str, list[float]], int]:
    """Seconds of every turn of ours, of the reference, and of the reference with less of the competition's way; videos
    of a turn."""
    seed_everything(0)
    params = load(PretrainParams)
    batches, workers = pretraining_batches(data.dataset, params, setting.batch_size), load_runtime().workers
    part = RepeatedBatches(batches, setting.batches)
    rows = [part[index]["row"].tolist() for index in range(len(part))]
    ways = {"reference": AS_REFERENCE} | (TURNED_OFF if setting.ablate else {})
    references = {name: open_reference(arch, setting, data, way) for name, way in ways.items()}
    turns = Turns(part, {name: partial(other.train, rows, workers) for name, other in references.items()})
    task, precision = PretrainingTask(our_model(arch, setting, data)), load_value("precision")
    run_loop(f"{arch}-{setting.name}", task, params, setting.rounds + 1, precision, turns.start, turns.finish)
    return turns.seconds, part.samples


def figures_for(arch: str, setting: Setting, seconds: dict[str, list[float]], samples: int) -> Figures:
    """Samples a second of both, and how much faster ours is; what each part of it is worth to the reference alone."""
    where = f"{arch}_{setting.name}"
    ratios = [slow / fast for slow, fast in zip(seconds["reference"], seconds["ours"], strict=True)]
    figures: Figures = {
        f"train_step_ratio_{where}": median(ratios),
        f"train_step_ratio_{where}_low": min(ratios),
        f"train_step_ratio_{where}_high": max(ratios),
    }
    for name in ("ours", "reference"):
        figures[f"train_samples_per_second_{name}_{where}"] = samples / median(seconds[name])
    for name in TURNED_OFF if setting.ablate else ():
        figures[f"train_step_gain_{arch}_{name}"] = median(
            [slow / fast for slow, fast in zip(seconds["reference"], seconds[name], strict=True)]
        )
    return figures


def measure(chosen: list[Setting]) -> Figures:
    figures: Figures = {}
    with scratch_project() as folder:
        for setting in chosen:
            (folder / setting.name).mkdir()
            data = make_data(folder / setting.name, setting)
            lengths = data.dataset.lengths(np.arange(len(data.dataset)))
            figures[f"train_tokens_{setting.name}"] = float(lengths.mean())
            for arch in ARCHS:
                found = figures_for(arch, setting, *compare(arch, setting, data))
                log.info("%s, %s: %s", arch, setting.name, {name: rounded(value) for name, value in found.items()})
                figures |= found
    return figures | headline(figures, chosen)


def headline(figures: Figures, chosen: list[Setting]) -> Figures:
    """The smaller ratio of the sizes that read the demo's texts."""
    names = [setting.name for setting in chosen if setting.texts == 1]
    ratios = {arch: [figures[f"train_step_ratio_{arch}_{name}"] for name in names] for arch in ARCHS}
    return {f"train_step_ratio_{arch}": min(value for value in ratios[arch] if value) for arch in ARCHS}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes: does the script work?")
    rehearse = parser.parse_args().rehearse
    if not rehearse:
        use_all_cores()
    precision = resolve_precision(load_value("precision"), torch.device("cpu"))
    log.info("%d threads, ours in %s", torch.get_num_threads(), precision)
    report(measure(rehearsal() if rehearse else settings()))


if __name__ == "__main__":
    main()
