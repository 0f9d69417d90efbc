"""How much of a GPU's matrix products training and inference reach: python -m benchmarks.mfu

Pretraining by the real loop at base size, and a teacher's predictions at large size, on generated stores of texts and
frames as long as the real ones (about 180 tokens a video, frames included). MFU: counted FLOP a second, over the FLOP a
second of the fastest large bf16 product measured here. Without a GPU every figure is null; --rehearse runs tiny models.
"""

import argparse
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figures import Figures, report, scratch_project
from benchmarks.names import ARCHS, MFU
from benchmarks.ours import loss_of, plain_batches, pretraining_batches, run_loop
from benchmarks.videos import RepeatedBatches, open_dataset, write_stores
from benchmarks.wechat import CLASSES, VOCABULARY, wechat
from framefold.data.batches import EpochBatches, VideoDataset
from framefold.data.tokens import SpecialTokens
from framefold.errors import command
from framefold.inference.predict import predict_logits
from framefold.models.registry import architecture, build_model, build_with_mlm_head
from framefold.params.finetune import FinetuneParams
from framefold.params.models import StudentParams, TextModelParams, TextSizes
from framefold.params.pretrain import PretrainParams
from framefold.params.pseudo_label import PseudoLabelParams
from framefold.params.teacher import TeacherParams
from framefold.runtime import load_runtime, resolve_precision, seed_everything
from framefold.training.pretraining import PretrainingModel
from framefold.training.tasks import ClassificationTask, PretrainingTask

log = logging.getLogger(__name__)

LENGTHS = {"title": (10, 60), "asr": (20, 84), "ocr": (30, 84)}  # tokens, evenly spread; with frames 180 on average
FRAMES = (30, 32)
FEATURE_DIMS = {"student": 512, "teacher": 768}  # of ViT-B/16 and ViT-L/14
TIMED_EPOCHS = 2  # after one that warms up; the faster counts
MATMULS, MATMUL_REPEATS = 20, 5


@dataclass(frozen=True)
class Scale:
    """Sizes of a run."""

    student: TextSizes
    teacher: TextSizes
    heads: int  # of the dual stream's fusion layers
    vocabulary: int
    pretrain_batch: int
    predict_batch: int
    videos: int
    steps: int  # of one epoch of the loop
    matmul: tuple[int, ...]  # sides of the square matrices


def full_scale() -> Scale:
    base = {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072}
    large = {"layers": 24, "hidden": 1024, "heads": 16, "intermediate": 4096}
    student, teacher = (TextSizes(**size, max_positions=512, dropout=0.1, topics=False) for size in (base, large))
    batch, predict = wechat(PretrainParams).batch_size, wechat(PseudoLabelParams).batch_size
    return Scale(
        student, teacher, 12, VOCABULARY, batch, predict, videos=20 * batch, steps=60, matmul=(4096, 8192, 16384)
    )


def rehearsal() -> Scale:
    tiny = TextSizes(layers=1, hidden=32, heads=2, intermediate=64, max_positions=512, dropout=0.1, topics=False)
    return Scale(tiny, tiny, 2, 500, pretrain_batch=8, predict_batch=16, videos=32, steps=2, matmul=(256,))


# Models and data


def write_videos(folder: Path, scale: Scale) -> None:
    """Stores of both feature sizes."""
    rng = np.random.default_rng(0)
    ids = [f"{10**18 + number}" for number in range(scale.videos)]
    segments = [
        [rng.integers(104, scale.vocabulary, rng.integers(low, high + 1)) for _ in ids]
        for low, high in LENGTHS.values()
    ]
    counts = rng.integers(FRAMES[0], FRAMES[1] + 1, len(ids))
    for who, dim in FEATURE_DIMS.items():
        write_stores(folder / who, ids, segments, scale.vocabulary, counts, dim)


def special_tokens(scale: Scale) -> SpecialTokens:
    return SpecialTokens(pad=0, unk=100, cls=101, sep=102, mask=103, size=scale.vocabulary)


def videos_of(who: str, folder: Path, scale: Scale) -> VideoDataset:
    inputs = wechat(StudentParams).inputs if who == "student" else wechat(TeacherParams).inputs
    return open_dataset(folder / who, inputs, special_tokens(scale), CLASSES)


def text_params(sizes: TextSizes) -> TextModelParams:
    return TextModelParams(folder=None, sha256=None, sizes=sizes)


def student(arch: str, scale: Scale) -> tuple[Any, Any]:
    """Backbone and its masked language model head."""
    params = wechat(architecture(arch).Params, f"models.{arch}")
    params = params.model_copy(update={"heads": scale.heads}) if hasattr(params, "heads") else params
    shape = scale.vocabulary, FEATURE_DIMS["student"], CLASSES
    return build_with_mlm_head(arch, text_params(scale.student), params, *shape)


def pretraining(arch: str, scale: Scale) -> PretrainingTask:
    params = wechat(PretrainParams)
    return PretrainingTask(PretrainingModel(*student(arch, scale), params.weights[arch], params))  # type: ignore[index]


def teacher(scale: Scale) -> Any:
    shape = scale.vocabulary, FEATURE_DIMS["teacher"], CLASSES
    return build_model("single_stream", text_params(scale.teacher), wechat(TeacherParams).model, *shape)


# Counting


@dataclass(frozen=True)
class Machine:
    """Where it runs, in which precision."""

    device: torch.device
    precision: str

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def batches(self, batches: EpochBatches) -> Iterator[dict[str, Tensor]]:
        for index in range(len(batches)):
            yield {name: tensor.to(self.device) for name, tensor in batches[index].items()}


def training_flops(task: Any, batches: EpochBatches, machine: Machine) -> float:
    """Of forward and backward, a video, on the batches as they are; attention counts as plain products, which no fused
    kernel's recomputation inflates."""
    task.model.to(machine.device).train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        for batch in machine.batches(batches):
            batch["label"] = batch["label"].clamp(min=0)  # unlabelled videos: any class costs the same
            with machine.autocast():
                loss, _ = loss_of(task, batch)
            loss.backward()
            task.model.zero_grad()
    return counter.get_total_flops() / len(batches.order)


def prediction_flops(model: nn.Module, batches: EpochBatches, machine: Machine) -> float:
    model.to(machine.device).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad(), machine.autocast():
        for batch in machine.batches(batches):
            model(batch)
    return counter.get_total_flops() / len(batches.order)


def padding_share(batches: EpochBatches) -> float:
    """Of the positions of all batches."""
    masks = [batches[index][name] for index in range(len(batches)) for name in ("text_mask", "frame_mask")]
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


# Timing


def matmul_peak(sides: tuple[int, ...], machine: Machine) -> float:
    """FLOP a second of the fastest square bf16 product of random numbers, each time the mean of several in a row."""
    best = 0.0
    for side in sides:
        a, b = (torch.randn(side, side, device=machine.device, dtype=torch.bfloat16) for _ in range(2))
        a @ b
        for _ in range(MATMUL_REPEATS):
            start = machine.now()
            for _ in range(MATMULS):
                a @ b
            best = max(best, MATMULS * 2 * side**3 / (machine.now() - start))
    return best


def training_rate(arch: str, batches: EpochBatches, scale: Scale, machine: Machine) -> float:
    """Videos a second through the real loop: start of the loader's workers, EMA and clipping included."""
    params, started, seconds = wechat(PretrainParams), [0.0], list[float]()
    epoch_batches = RepeatedBatches(batches, scale.steps)

    def start(epoch: int) -> RepeatedBatches:
        started[0] = machine.now()
        return epoch_batches

    def finish(epoch: int, model: nn.Module, ema: nn.Module) -> dict[str, Any]:
        seconds.append(machine.now() - started[0])
        return {}

    run_loop(arch, pretraining(arch, scale), params, 1 + TIMED_EPOCHS, machine.precision, start, finish)
    return epoch_batches.samples / min(seconds[1:])


def prediction_rate(model: nn.Module, videos: VideoDataset, scale: Scale, machine: Machine) -> float:
    """Videos a second, reading and padding included."""

    def predict() -> float:
        start = machine.now()
        predict_logits(model, videos, scale.predict_batch, machine.device, machine.precision)
        return machine.now() - start

    return len(videos) / min(predict() for _ in range(1 + TIMED_EPOCHS))


# Figures


def measure(scale: Scale, machine: Machine) -> Figures:
    seed_everything(0)
    figures: Figures = {"matmul_peak_tflops": matmul_peak(scale.matmul, machine) / 1e12}
    with scratch_project() as folder:
        write_videos(folder, scale)
        students, teachers = (videos_of(who, folder, scale) for who in FEATURE_DIMS)
        masked = pretraining_batches(students, wechat(PretrainParams), scale.pretrain_batch)
        plain = plain_batches(students, wechat(FinetuneParams).batch_size)
        figures["tokens_pretrain_base"] = float(students.lengths(np.arange(len(students))).mean())
        figures["padding_share_pretrain_base"] = padding_share(masked)
        for arch in ARCHS:
            figures |= student_figures(arch, masked, plain, scale, machine)
        figures |= teacher_figures(teachers, scale, machine)
    return figures | shares(figures)


def student_figures(arch: str, masked: EpochBatches, plain: EpochBatches, scale: Scale, machine: Machine) -> Figures:
    finetuning = ClassificationTask(student(arch, scale)[0], 0.1)
    figures: Figures = {
        f"gflop_pretrain_{arch}": training_flops(pretraining(arch, scale), masked, machine) / 1e9,
        f"gflop_finetune_{arch}": training_flops(finetuning, plain, machine) / 1e9,
        f"videos_per_second_pretrain_{arch}": training_rate(arch, masked, scale, machine),
    }
    log.info("%s: %s", arch, figures)
    return figures


def teacher_figures(videos: VideoDataset, scale: Scale, machine: Machine) -> Figures:
    model, batch = teacher(scale), wechat(TeacherParams).training.batch_size
    predicted, trained = (plain_batches(videos, size) for size in (scale.predict_batch, batch))
    return {
        "gflop_predict_teacher": prediction_flops(model, predicted, machine) / 1e9,
        "gflop_train_teacher": training_flops(ClassificationTask(model, 0.1), trained, machine) / 1e9,
        "videos_per_second_teacher": prediction_rate(model, videos, scale, machine),
    }


def shares(figures: dict[str, Any]) -> Figures:
    """MFU: FLOP a video times videos a second, over the peak."""
    pairs = {
        "mfu_pretrain_base": ("gflop_pretrain_single_stream", "videos_per_second_pretrain_single_stream"),
        "mfu_pretrain_base_dual_stream": ("gflop_pretrain_dual_stream", "videos_per_second_pretrain_dual_stream"),
        "mfu_teacher_large": ("gflop_predict_teacher", "videos_per_second_teacher"),
    }
    peak = figures["matmul_peak_tflops"] * 1e3
    return {name: figures[gflop] * figures[rate] / peak for name, (gflop, rate) in pairs.items()}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="tiny models on any device: does the script work?")
    rehearse = parser.parse_args().rehearse
    os.environ.setdefault("FRAMEFOLD_WORKERS", "0" if rehearse else str(len(os.sched_getaffinity(0)) // 2))
    device = load_runtime().torch_device()
    if device.type != "cuda" and not rehearse:
        log.info("no GPU here: nothing is measured")
        report(dict.fromkeys(MFU))
        return
    machine = Machine(device, resolve_precision("auto", device))
    report(measure(rehearsal() if rehearse else full_scale(), machine))


if __name__ == "__main__":
    main()
