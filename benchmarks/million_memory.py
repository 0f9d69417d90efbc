"""Peak memory and rates of the streaming stages on generated data: part of `benchmarks.million`.

Annotations and given features (layout zip_feats) go through the real stages in a row; only the teachers are written by
hand, with random weights. Ingest therefore compares texts and ids, and no frames.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.million_data import CATEGORIES, FEATURE_DIM, SPLITS, write_annotations, write_feature_archive
from benchmarks.million_project import Measured, Project, new_project
from framefold.data.folds import HOLDOUT, teacher_fold
from framefold.data.origins import ORIGIN, origin_of
from framefold.data.tokens import read_special_tokens
from framefold.data.videos import open_labeled
from framefold.inference.predictions import write_predictions
from framefold.models.registry import build_model, save_model
from framefold.params.base import load
from framefold.params.teacher import TeacherParams
from framefold.progress import RATES
from framefold.storage import read_json, write_json

log = logging.getLogger(__name__)

LABELED, TEST = 2_000, 1_000  # at every size
SAMPLES = 80_000  # that pretraining sees, at every size, before it is told to stop
PER_RECORD = 64  # bytes that a stage may take for each record where it compares ids or hashes of them all
COMPARING = ("ingest", "extract_frames", "pseudo_label")
DATA = Path("data/raw")  # ignored by git, so DVC does not walk it
OVERRIDES = (
    f"data.root={DATA}",
    "data.generated=[]",
    "teacher.encoder=small",  # one encoder for teachers and students
    f"encoders.small.max_frames={3}",
    "encoders.small.max_frames=6",
    "text.vocab_size=2500",
    "text.max_unknown=0.1",
    "pretrain.batch_size=128",
    "pseudo_label.batch_size=64",
)


@dataclass
class Run:
    """All stages at one size."""

    project: Project
    records: int  # unlabelled
    stages: dict[str, Measured] = field(default_factory=dict)
    frames: int = 0  # extracted, of the unlabelled videos


def run_stages(folder: Path, unlabeled: int) -> Run:
    """Generate data in `folder` and run the stages on it."""
    run = Run(new_project(folder, OVERRIDES), unlabeled)
    write_raw(folder / DATA, {"labeled": LABELED, "unlabeled": unlabeled, "test": TEST})
    run.project.framefold("manifest", str(DATA))
    for name, measured in measure_stages(run.project):
        run.stages[name] = measured
        log.info("%s at %d: %.1f s, peak %d MiB", name, unlabeled, measured.seconds, measured.peak >> 20)
    run.frames = sum(read_json(folder / "data/features/small/unlabeled/manifest.json")["shards"])
    show_rates(folder / RATES)
    return run


def write_raw(root: Path, sizes: dict[str, int]) -> None:
    for split in SPLITS:
        write_annotations(root / "annotations" / f"{split}.json", split, sizes[split])
        write_feature_archive(root / "zip_feats" / f"{split}.zip", split, sizes[split])


def measure_stages(project: Project) -> Iterator[tuple[str, Measured]]:
    """The stages in the order of the pipeline; those that do not read the pool's records run unmeasured."""
    yield "ingest", project.measure("stages.ingest")
    project.measure("stages.split")
    yield "tokenize", project.measure("stages.tokenize")
    project.measure("stages.adapt_clip", "--encoder", "small")
    for split in ("labeled", "test"):
        project.measure("stages.extract_frames", "--encoder", "small", "--split", split)
    yield "extract_frames", project.measure("stages.extract_frames", "--encoder", "small", "--split", "unlabeled")
    write_teachers(project)
    yield "pseudo_label", project.measure("stages.pseudo_label")
    yield "pretrain", project.measure("stages.pretrain", "--arch", "single_stream", until=enough)


def enough(line: str) -> bool:
    """`pretrain@single_stream-all: 80128/998000 samples  loss ...`"""
    found = re.match(r"pretrain@\S+ (\d+)/", line)
    return found is not None and int(found[1]) >= SAMPLES


def write_teachers(project: Project) -> None:
    """What train_teacher leaves, with random weights and random predictions."""
    with chdir(project.path):
        params, labeled = load(TeacherParams), open_labeled()
        shape = read_special_tokens("models/tokenizer").size, FEATURE_DIM, CATEGORIES
        for number in params.folds:
            folder = Path("models/teacher") / str(number)
            folder.mkdir(parents=True)
            torch.manual_seed(number)
            save_model(folder, build_model("single_stream", params.text, params.model, *shape))
            own = teacher_fold(labeled.fold, params.n_folds)
            trained = np.flatnonzero((own != number) & (labeled.fold != HOLDOUT))
            write_json(folder / ORIGIN, origin_of(labeled, trained, params.n_folds))
            ids = labeled.ids.take(np.flatnonzero(own == number)).to_pylist()
            logits = np.random.default_rng(number).normal(size=(len(ids), CATEGORIES))
            write_predictions(folder / "out_of_fold.parquet", ids, logits)


def show_rates(path: Path) -> None:
    """What the stages have appended to their log."""
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        log.info("%s: %s", entry["what"], ", ".join(f"{n:.0f} {unit}/s" for unit, n in entry["per_second"].items()))
