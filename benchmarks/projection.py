"""GPU-hours of the whole recipe for the WeChat Big Data Challenge 2022, from measured rates and counted FLOP."""

from benchmarks.figures import Figures
from benchmarks.names import PROJECTED, TOWERS
from benchmarks.wechat import FRAMES, LABELED, UNLABELED, wechat
from framefold.params.finetune import FinetuneParams
from framefold.params.pretrain import PretrainParams
from framefold.params.split import SplitParams
from framefold.params.teacher import TeacherParams

POOL = LABELED + UNLABELED  # what the winners pretrained on
PASSES = 2  # of a finetuning step with FGM


def training_hours() -> dict[str, tuple[float, str, str]]:
    """Videos through forward and backward, and the figures of GFLOP a video and of the MFU, by stage."""
    known = LABELED * (1 - wechat(SplitParams).holdout)
    teacher, finetune, folds = wechat(TeacherParams), wechat(FinetuneParams), wechat(SplitParams).n_folds
    taught = teacher.training.epochs * known * (teacher.n_folds - 1)
    pretrained = {arch: epochs * POOL for arch, epochs in wechat(PretrainParams).epochs.items()}
    tuned = PASSES * finetune.epochs * known * (folds - 1)
    return {
        "train_teacher": (taught, "gflop_train_teacher", "mfu_pretrain_base"),
        "pretrain_single_stream": (
            pretrained["single_stream"],
            "gflop_pretrain_single_stream",
            "mfu_pretrain_base",
        ),
        "pretrain_dual_stream": (
            pretrained["dual_stream"],
            "gflop_pretrain_dual_stream",
            "mfu_pretrain_base_dual_stream",
        ),
        "finetune_single_stream": (tuned, "gflop_finetune_single_stream", "mfu_pretrain_base"),
        "finetune_dual_stream": (tuned, "gflop_finetune_dual_stream", "mfu_pretrain_base_dual_stream"),
    }


def projected(figures: Figures) -> Figures:
    """Hours by stage and in all; null where a figure that they need is. Encoder adaptation (0.1 h) is left out."""
    hours: dict[str, float | None] = {}
    for tower in TOWERS:
        hours[f"extract_{tower}"] = quotient(FRAMES, figures.get(f"extract_frames_per_second_{tower}"))
    labelled = UNLABELED * len(wechat(TeacherParams).folds)
    hours["pseudo_label"] = quotient(labelled, figures.get("videos_per_second_teacher"))
    for stage, (videos, gflop, mfu) in training_hours().items():
        cost, share, peak = (figures.get(name) for name in (gflop, mfu, "matmul_peak_tflops"))
        rate = share * peak * 1e3 / cost if cost and share and peak else None
        hours[stage] = quotient(videos, rate)
    known = [value for value in hours.values() if value is not None]
    whole = sum(known) if len(known) == len(hours) else None
    return {PROJECTED + name: value for name, value in (hours | {"wechat": whole}).items()}


def quotient(count: float, per_second: float | None) -> float | None:
    """Hours."""
    return count / per_second / 3600 if per_second else None
