"""How this project pretrains, as far as the benchmarks must know: as stages/pretrain.py, on any videos."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from benchmarks.videos import RepeatedBatches
from framefold.data.batches import EpochBatches, VideoDataset
from framefold.params.pretrain import PretrainParams
from framefold.scratch import Scratch
from framefold.training.loop import train
from framefold.training.sharing import Share
from framefold.training.views import MismatchedVideos, training_views

Batch = dict[str, Tensor]


def pretraining_batches(videos: VideoDataset, params: PretrainParams, batch_size: int) -> EpochBatches:
    """The first epoch, with hidden tokens and frames, and mismatched pairs."""
    pairs, views = MismatchedVideos(videos, params.mismatched), training_views(params.masking, videos)
    return EpochBatches(pairs, batch_size, batch_tokens=params.batch_tokens, seed=0, epoch=0, transform=views)


def plain_batches(videos: VideoDataset, batch_size: int) -> EpochBatches:
    return EpochBatches(videos, batch_size, seed=0, epoch=0)


def loss_of(task: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Total and parts, in one process."""
    samples = len(batch["row"])
    total, parts = task.loss(batch, Share(samples, samples))
    return total, parts


def run_loop(
    name: str,
    task: Any,
    params: PretrainParams,
    epochs: int,
    precision: str,
    start: Callable[[int], RepeatedBatches],
    finish: Callable[[int, nn.Module, nn.Module], dict[str, Any]],
) -> None:
    """The real training loop: `start` gives each epoch its batches, `finish` is told when they are done."""
    with Scratch(f"benchmark@{name}", {}) as scratch:
        train(
            task,
            start,
            params.lasting(epochs),
            learning_rates=params.lr.model_dump(),
            seed=0,
            precision=precision,
            scratch=scratch,
            after_epoch=finish,
        )
        scratch.finish()
