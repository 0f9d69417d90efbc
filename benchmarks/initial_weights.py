"""What the initial weights are worth to students from scratch: python benchmarks/initial_weights.py --seeds 0 1

Run it in a project whose text models start from `sizes`, after `dvc repro tokenize extract_frames split`. Trains both
architectures on the true labels alone, by the teachers' schedule, once with this library's initial weights and once
with BERT's constant 0.02 in every layer. Prints the score on validation fold 0 (never the holdout, never test).
"""

import argparse
import logging
from collections.abc import Callable
from itertools import product
from typing import Any

from torch import nn

from framefold.data.topics import pool_rows
from framefold.data.videos import Videos, open_labeled, open_videos
from framefold.errors import command
from framefold.models.bert import INITIALIZER_STD
from framefold.models.registry import architecture, build_model
from framefold.params.base import load, load_value
from framefold.params.models import StudentParams
from framefold.params.supervised import SupervisedParams
from framefold.params.teacher import TeacherParams
from framefold.runtime import load_runtime, seed_everything
from framefold.scratch import Scratch
from framefold.training.classifiers import FoldData, open_fold, train_classifier
from framefold.training.text_start import start_from_topics


def constant(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIALIZER_STD)


def build(arch: str, initialize: Callable[[nn.Module], None] | None, videos: Videos, n_classes: int, seed: int) -> Any:
    """A student as `pretrain` would start it, or one whose weights `initialize` has drawn anew."""
    student, labeled = load(StudentParams), open_labeled(videos)
    size = load(architecture(arch).Params, f"models.{arch}")
    seed_everything(seed)
    model = build_model(arch, student.text, size, videos.special.size, videos.features.dim, n_classes)
    if initialize:
        model.apply(initialize)
    start_from_topics(model, student.text, pool_rows(labeled), seed)
    return model


def score(model: Any, data: FoldData, params: SupervisedParams, seed: int, start: str) -> float:
    """Score of the EMA weights on the fold, after training by the teachers' schedule."""
    with Scratch(f"initial_weights@{type(model).__name__}-{seed}", {"start": start}) as scratch:
        result = train_classifier(
            model,
            data,
            params,
            seed=seed,
            precision=load_value("precision"),
            scratch=scratch,
        )
        scratch.finish()
    return data.score(data.logits(result.ema, load_runtime().torch_device()))


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    load_runtime().prepare_cpu()
    student, training = load(StudentParams), load(TeacherParams).training
    videos = open_videos("labeled", student.encoder)
    labeled = open_labeled(videos)
    data = open_fold(videos, labeled, labeled.fold == 0, student.inputs, training.batch_size)
    starts: dict[str, Callable[[nn.Module], None] | None] = {"ours": None, str(INITIALIZER_STD): constant}
    for seed, arch, start in product(parser.parse_args().seeds, load_value("archs"), starts):
        model = build(arch, starts[start], videos, len(data.categories), seed)
        found = score(model, data, training, seed, start)
        logging.info("%s, seed %d, initial weights %s: %.4f", arch, seed, start, found)


if __name__ == "__main__":
    main()
