"""Training steps with padding and without: python -m benchmarks.packing [--settings demo ...] [--steps N]

Pretraining of both architectures, forward, backward and optimizer, on the same batches in turns within one run. Padding
is what buckets of like length leave of the demo's texts ("buckets"), or about 15 and 30 % in batches of generated
lengths that are in no order. A figure is the median over steps of the time with padding over the time without; on the
CPU processor time of one thread, so that others on the machine disturb little.
"""

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.figures import Figures, report, rounded, scratch_project
from benchmarks.names import ARCHS
from benchmarks.ours import loss_of
from benchmarks.training import TEXTS, Data, Setting, feature_dim, longer, our_model, settings
from benchmarks.videos import Segments, demo_records, open_dataset, write_stores
from framefold.data.batches import EpochBatches
from framefold.data.places import with_places
from framefold.data.tokenizer import train_or_load
from framefold.errors import command
from framefold.params.base import load, load_value
from framefold.params.demo import DemoParams
from framefold.params.models import InputParams
from framefold.params.pretrain import PretrainParams
from framefold.params.text import TextParams
from framefold.runtime import load_runtime, resolve_precision, seed_everything
from framefold.training.optimization import build_optimizer, parameter_groups
from framefold.training.tasks import PretrainingTask
from framefold.training.views import Masking, MismatchedVideos

log = logging.getLogger(__name__)

SHARES = {"buckets": None, "15": 0.15, "30": 0.30}
WARM = 3  # steps of each that are not counted
LONG_BATCH = 16  # of texts as long as the real ones: as many tokens as in a batch of the demo's
Batch = dict[str, Tensor]


class Unordered(MismatchedVideos):
    """Batches of whatever lengths come together."""

    def order_keys(self) -> npt.NDArray[np.integer]:
        return np.zeros(len(self), dtype=np.int64)


def make_data(folder: Path, setting: Setting, share: float | None) -> Data:
    """Texts of the demo and as many frames as it has, or random tokens and frames with about this share of padding."""
    records = longer(demo_records(setting.videos * setting.texts, seed=0), setting.texts)
    tokenizer = train_or_load(load(TextParams), lambda: (record[name] for record in records for name in TEXTS))
    vocabulary, most, inputs = tokenizer.special.size, setting.inputs.max_frames, setting.inputs
    if share is None:
        segments: Segments = [tokenizer.encode_batch([record[name] for record in records]) for name in TEXTS]
        counts = lengths_up_to(most, 0.2 if setting.texts == 1 else 0.0, len(records))
    else:
        longest = inputs.title + inputs.asr + inputs.ocr
        inputs = InputParams(title=longest, asr=0, ocr=0, max_frames=most)
        segments = drawn_tokens(lengths_up_to(longest, share, len(records)), vocabulary)
        counts = lengths_up_to(most, share, len(records))
    write_stores(folder, [record["id"] for record in records], segments, vocabulary, counts, feature_dim())
    return Data(
        folder, records, tokenizer, open_dataset(folder, inputs, tokenizer.special, load(DemoParams).categories)
    )


def lengths_up_to(most: int, share: float, count: int) -> npt.NDArray[np.int64]:
    """Evenly spread, on average `share` below `most`."""
    return np.random.default_rng(most).integers(round(most * (1 - 2 * share)), most + 1, count)


def drawn_tokens(lengths: npt.NDArray[np.int64], vocabulary: int) -> Segments:
    """Titles of these lengths, nothing else."""
    rng = np.random.default_rng(0)
    none: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(lengths)
    return [[rng.integers(10, vocabulary, length) for length in lengths.tolist()], none, none]


def batches_of(data: Data, setting: Setting, ordered: bool) -> EpochBatches:
    params = load(PretrainParams)
    pairs = (MismatchedVideos if ordered else Unordered)(data.dataset, params.mismatched)
    masking = Masking(params.masking, data.dataset.special)
    return EpochBatches(pairs, setting.batch_size, seed=0, epoch=0, transform=masking)


def padding_share(batches: list[Batch]) -> float:
    """Of the positions of text and frames in all batches."""
    masks = [batch[name] for batch in batches for name in ("text_mask", "frame_mask")]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


class Steps:
    """Optimizer steps of one model, timed."""

    def __init__(self, arch: str, setting: Setting, data: Data):
        seed_everything(0)
        self.device = load_runtime().torch_device()
        self.bf16 = resolve_precision(load_value("precision"), self.device) == "bf16"
        self.task = PretrainingTask(our_model(arch, setting, data))
        model = self.task.model.to(self.device).train()
        rates = load(PretrainParams).lr.model_dump()
        self.optimizer = build_optimizer(parameter_groups(model, self.task.role_of, rates, 0.01), self.device)

    def seconds(self, batch: Batch) -> float:
        moved = {name: tensor.to(self.device) for name, tensor in batch.items()}
        start = self.now()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss, _ = loss_of(self.task, moved)
        loss.backward()
        self.optimizer.step()
        return self.now() - start

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def compare(steps: Steps, batches: list[Batch], count: int) -> npt.NDArray[np.float64]:
    """(count, 2): seconds of a step with padding and of one without, on the same batch, each first in turn."""
    ways = [batches, [with_places(batch, steps.device) for batch in batches]]
    times = np.zeros((WARM + count, 2))
    for step in range(len(times)):
        for way in (0, 1) if step % 2 else (1, 0):
            times[step, way] = steps.seconds(ways[way][step % len(batches)])
    return times[WARM:]


def measure(chosen: list[Setting], steps: int) -> Figures:
    figures: Figures = {}
    for setting in chosen:
        for where, share in SHARES.items():
            with scratch_project() as folder:
                data = make_data(folder, setting, share)
                epoch = batches_of(data, setting, ordered=share is None)
                batches = [epoch[index] for index in range(min(steps + WARM, len(epoch)))]
                for arch in ARCHS:
                    times = compare(Steps(arch, setting, data), batches, steps)
                    found = figures_of(f"{arch}_{setting.name}_{where}", times, batches)
                    log.info("%s", {name: rounded(value) for name, value in found.items()})
                    figures |= found
    return figures


def figures_of(name: str, times: npt.NDArray[np.float64], batches: list[Batch]) -> Figures:
    low, middle, high = np.quantile(times[:, 0] / times[:, 1], [0.25, 0.5, 0.75])
    return {
        f"padding_share_{name}": padding_share(batches),
        f"packing_ratio_{name}": float(middle),
        f"packing_ratio_{name}_low": float(low),
        f"packing_ratio_{name}_high": float(high),
    }


@command
def main() -> None:
    chosen = [one if one.texts == 1 else replace(one, batch_size=LONG_BATCH) for one in settings()]
    known = {setting.name: setting for setting in chosen}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=known, default=list(known))
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    load_runtime().prepare_cpu()
    torch.set_num_threads(1)
    report(measure([known[name] for name in arguments.settings], arguments.steps))


if __name__ == "__main__":
    main()
