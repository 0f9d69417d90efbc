"""What the initial weights are worth to students from scratch: python benchmarks/initial_weights.py --seeds 0 1

Run it in a project whose text models start from `sizes`, after `dvc repro tokenize extract_frames split`. Trains both
architectures on the true labels alone, by the teachers' schedule, once with this library's initial weights and once
with BERT's constant 0.02 in every layer. Prints the score on validation fold 0 (never the holdout, never test).
"""

import argparse
import logging
from functools import partial

import torch
from torch import nn

from framefold.data.topics import pool_rows
from framefold.data.videos import open_labeled, open_videos
from framefold.errors import command
from framefold.models.bert import INITIALIZER_STD
from framefold.models.registry import architecture, build_model
from framefold.params.base import load, load_value
from framefold.params.models import StudentParams
from framefold.params.teacher import TeacherParams
from framefold.runtime import load_runtime, seed_everything
from framefold.scratch import Scratch
from framefold.training.classifiers import open_fold, train_classifier
from framefold.training.text_start import start_from_topics


def constant(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    load_runtime().prepare_cpu()
    student, training = load(StudentParams), load(TeacherParams).training
    videos = open_videos("labeled", student.encoder)
    labeled = open_labeled(videos)
    data = open_fold(videos, labeled, labeled.fold == 0, student.inputs, training.batch_size)
    for seed in parser.parse_args().seeds:
        for arch in load_value("archs"):
            for name, initialize in (("ours", None), ("0.02", partial(constant, std=INITIALIZER_STD))):
                seed_everything(seed)
                size = load(architecture(arch).Params, f"models.{arch}")
                model = build_model(
                    arch, student.text, size, videos.special.size, videos.features.dim, len(data.categories)
                )
                if initialize:
                    model.apply(initialize)
                start_from_topics(model, student.text, pool_rows(labeled), seed)
                with Scratch(f"initial_weights@{arch}", {"seed": seed, "name": name}) as scratch:
                    result = train_classifier(
                        model,
                        data,
                        training,
                        label_smoothing=training.label_smoothing,
                        adversarial=training.adversarial,
                        seed=seed,
                        precision=load_value("precision"),
                        scratch=scratch,
                    )
                    scratch.finish()
                score = data.score(data.logits(result.ema, torch.device("cpu")))
                logging.info("%s, seed %d, initial weights %s: %.4f", arch, seed, name, score)


if __name__ == "__main__":
    main()
