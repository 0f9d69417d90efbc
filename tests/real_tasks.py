"""Every task that the training loop is given, small, on the stores of `stores.make_project` in the current folder.

Its embeddings and frames are as in the stages; soft labels and pixels are made up. Some videos have no frames, no soft
label or no usable pixels.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stores import CATEGORIES, DIM, VOCAB

from framefold.data.batches import ALL, Batch, EpochBatches
from framefold.data.videos import open_labeled, open_videos
from framefold.models.registry import architecture, build_with_mlm_head
from framefold.models.vision import load_vision_encoder
from framefold.params.base import load
from framefold.params.encoders import EncoderParams
from framefold.params.finetune import FinetuneParams
from framefold.params.models import StudentParams, TextModelParams
from framefold.params.pretrain import ObjectiveWeights, PretrainParams
from framefold.params.training import AdversarialParams, OptimizationParams
from framefold.scratch import Scratch
from framefold.training.classifiers import FoldData, classifier_task, epoch_samples
from framefold.training.contrastive import ContrastiveModel, ContrastiveTask
from framefold.training.loop import TrainResult, train
from framefold.training.pretraining import PretrainingModel
from framefold.training.tasks import ClassificationTask, PretrainingTask
from framefold.training.views import MismatchedVideos, training_views

FGM, PGD = (AdversarialParams(method=method, epsilon=0.5, alpha=0.3, steps=3) for method in ("fgm", "pgd"))
VIT = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}  # no batch normalisation
WEIGHTS = {  # every objective that the architecture can have
    "single_stream": ObjectiveWeights(mlm=0.5, mfm=0.4, itm=0.3, itc=0.0, distillation=2.0),
    "dual_stream": ObjectiveWeights(mlm=0.5, mfm=0.4, itm=0.3, itc=0.6, distillation=2.0),
}
KINDS = ["classify", "supervise", "pretrain", "pretrain_all"]  # the second and the last with everything on that exists
NAMES = [*(f"{kind} {arch}" for kind in KINDS for arch in WEIGHTS), "adapt"]
NAMES += ["classify dual_stream nextvlad", "pretrain single_stream nextvlad"]  # these compare frames of a whole batch
SUPERVISED = {
    "loss": {"focal_gamma": 1.5, "class_balance": 0.9, "logit_adjustment": 0.5},
    "level1": 0.3,
    "r_drop": 0.5,
    "self_distillation": {"weight": 0.6, "temperature": 2.0},
    "contrast": {"weight": 0.4, "temperature": 0.2, "embed_dim": 8},
    "oversampling": 0.5,
    "layer_decay": 0.8,
}
OPTIONS = {  # of pretraining, in "pretrain_all": what is off by default
    "masking": {"text_drop": 0.2, "frames_drop": 0.2},
    "mismatched": {"hard": 0.7},
    "contrast": {"queue": 20, "soft_targets": 0.4},
}


@dataclass(frozen=True)
class Real:
    task: Any
    epochs: Callable[[int], EpochBatches]
    learning_rates: dict[str, float]
    adversarial: AdversarialParams | None = None


def real_task(
    name: str, dropout: float = 0.0, videos: int = 35, batch_size: int = 7, tokens: int | None = None
) -> Real:
    """One of NAMES; batches of `batch_size`, or cut by `tokens`."""
    torch.manual_seed(0)
    kind, arch, pooling = (*name.split(), "", "")[:3]
    rates = {"head": 1e-3, "text": 1e-3, "vision": 1e-3}
    cut = {"batch_size": batch_size, "seed": 0, "batch_tokens": tokens}
    if kind == "adapt":
        return Real(contrastive(), lambda epoch: EpochBatches(Pixels(videos), **cut, epoch=epoch), rates)
    if kind == "supervise":
        return supervised(build(arch, dropout, pooling)[0], videos, cut)
    if kind == "classify":
        samples = fold_data(np.arange(videos)).training
        task = ClassificationTask(build(arch, dropout, pooling)[0], 0.1)
        return Real(task, lambda epoch: EpochBatches(samples, **cut, epoch=epoch), rates, FGM)
    params = with_options(load(PretrainParams)) if kind == "pretrain_all" else load(PretrainParams)
    pretraining = PretrainingTask(PretrainingModel(*build(arch, dropout, pooling), WEIGHTS[arch], params))
    pretraining.average = copy.deepcopy(pretraining.model)  # until the loop gives it one
    if kind == "pretrain_all":  # rounding that AdamW makes a full step of comes back by the queue, in the next step
        rates = dict.fromkeys(rates, 1e-4)
    data = pool(videos)
    views, paired = training_views(params.masking, data), MismatchedVideos(data, params.mismatched)
    return Real(pretraining, lambda epoch: EpochBatches(paired, **cut, epoch=epoch, transform=views), rates)


def with_options(params: PretrainParams) -> PretrainParams:
    blocks = {name: getattr(params, name).model_copy(update=changes) for name, changes in OPTIONS.items()}
    return params.model_copy(update=blocks)


def supervised(model: Any, videos: int, cut: dict[str, Any]) -> Real:
    params = supervised_params()
    data = fold_data(np.arange(videos))
    task, rates = classifier_task(model, data, params)
    task.average = copy.deepcopy(task.model)  # type: ignore[union-attr]  # the loop puts its own there
    return Real(task, lambda epoch: EpochBatches(epoch_samples(data, params, 0, epoch), **cut, epoch=epoch), rates, PGD)


def supervised_params(**changes: Any) -> FinetuneParams:
    """Those of params.yaml with everything of SUPERVISED on, but for `changes`."""
    return FinetuneParams.model_validate(load(FinetuneParams).model_dump() | SUPERVISED | changes)


def fold_data(rows: np.ndarray) -> FoldData:
    """Labelled videos `rows` that train; the same ones validate."""
    samples = open_videos("labeled", "small").dataset(rows, load(StudentParams).inputs, labels=open_labeled().label)
    return FoldData(samples, samples, CATEGORIES, batch_size=32)


def build(arch: str, dropout: float, pooling: str = "") -> Any:
    """The architecture of params.yaml with its masked language model head; `pooling`: of frames, if not their mean."""
    text = load(StudentParams).text
    assert text.sizes is not None
    text = TextModelParams(folder=None, sha256=None, sizes=text.sizes.model_copy(update={"dropout": dropout}))
    size = load(architecture(arch).Params, f"models.{arch}")
    size = size.model_copy(
        update={"dropout": dropout, "pooling": size.pooling.model_copy(update={"frames": pooling or "mean"})}
    )
    return build_with_mlm_head(arch, text, size, VOCAB, DIM, len(CATEGORIES))


def pool(videos: int) -> Any:
    data = open_videos("unlabeled", "small")
    soft = np.random.default_rng(0).dirichlet(np.ones(len(CATEGORIES)), len(data)).astype(np.float16)
    soft[::5] = 0
    return data.dataset(np.arange(videos), load(StudentParams).inputs, soft=soft)


def contrastive() -> ContrastiveTask:
    params = load(EncoderParams, "encoders.small")
    params = params.model_copy(update={"config": {"embed_dim": 8, "vision_cfg": VIT}})
    vectors = np.random.default_rng(0).normal(size=(VOCAB, 6)).astype(np.float32)
    return ContrastiveTask(ContrastiveModel(load_vision_encoder(params), vectors, 0.07))


class Pixels:
    """Frames and titles as `PairSamples` gives them."""

    def __init__(self, size: int):
        rng = np.random.default_rng(0)
        self.pixels = torch.from_numpy(rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8))
        self.input_ids = torch.from_numpy(rng.integers(5, VOCAB, (size, 4)))
        self.has_frame = torch.from_numpy(rng.random(size) < 0.8)

    def __len__(self) -> int:
        return len(self.pixels)

    def order_keys(self) -> np.ndarray:
        return np.zeros(len(self), np.int64)

    def names(self, positions: np.ndarray) -> list[str]:
        return [f"video {position}" for position in positions]

    def batch(self, positions: np.ndarray, draw: tuple[int, int] | None = None, part: slice = ALL) -> Batch:
        own = torch.from_numpy(np.ascontiguousarray(positions[part]))
        batch = {"pixels": self.pixels[own], "has_frame": self.has_frame[own], "input_ids": self.input_ids[own]}
        return batch | {"text_mask": torch.ones_like(batch["input_ids"], dtype=torch.bool)}


def train_real(real: Real, params: OptimizationParams, item: str) -> TrainResult:
    """The real loop on a real task, in fp32 from seed 0, with nothing left in scratch."""
    with Scratch(item, {}) as scratch:
        result = train(
            real.task,
            real.epochs,
            params,
            learning_rates=real.learning_rates,
            seed=0,
            precision="fp32",
            scratch=scratch,
            adversarial=real.adversarial,
        )
        scratch.finish()
    return result
