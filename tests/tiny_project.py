"""A whole project in a temporary folder, as small as it gets: raw videos, real stages, random students.

Nothing is trained: `finetune`'s outputs are written by hand, as two checkpoints a fold of a model with random weights.
"""

import atexit
import contextlib
import functools
import importlib
import io
import json
import random
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from framefold.data.manifest import write_manifest
from framefold.data.origins import ORIGIN, origin_of
from framefold.data.videos import HOLDOUT, Videos, open_labeled, open_videos, read_categories
from framefold.inference.predict import predict_logits
from framefold.models.registry import architecture, build_model, save_config
from framefold.models.vision import load_vision_encoder, save_encoder
from framefold.models.weights import save_weights
from framefold.params.base import load
from framefold.params.encoders import EncoderParams
from framefold.params.models import StudentParams
from framefold.storage import write_json

ROOT = Path(__file__).resolve().parents[1]
WORDS = [
    *("红烧", "牛肉", "做法", "好吃"),
    *("篮球", "比赛", "进球", "冠军"),
    *("手机", "评测", "拍照", "电池"),
    *("风景", "旅行", "海边", "日落"),
]  # four of each category
CATEGORIES = ["0101", "0102", "0201", "0202"]
SIZES = {"labeled": 60, "unlabeled": 12, "test": 40}
N_FOLDS = 3
ARCHS, FOLDS = ["single_stream", "dual_stream"], [0, 1]
BLOCK = 16  # pixels


def write_raw(root: Path, seed: int = 0) -> None:
    """The official layout with test truth; classes differ in words and colours."""
    rng = random.Random(seed)
    truth = []
    for number, (split, size) in enumerate(SIZES.items(), start=1):
        records = []
        for i in range(size):
            video, label = f"{number}{rng.randrange(10**17, 10**18)}", i % len(CATEGORIES)
            records.append(
                record(rng, video, label) | ({"category_id": CATEGORIES[label]} if split == "labeled" else {})
            )
            write_frames(rng, root / "zip_frames" / split / video[-3:] / f"{video}.zip", label)
            truth += [f"{video},{CATEGORIES[label]}\n"] if split == "test" else []
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    (root / "annotations" / "test_truth.csv").write_text("".join(truth), encoding="utf-8")
    write_manifest(root)


def record(rng: random.Random, video: str, label: int) -> dict:
    own = WORDS[4 * label : 4 * label + 4]
    title = "".join(rng.choice(own if rng.random() < 0.6 else WORDS) for _ in range(rng.randrange(2, 9))) + video[-6:]
    ocr = [{"time": t, "text": rng.choice(WORDS) + str(rng.randrange(100))} for t in range(rng.randrange(4))]
    return {"id": video, "title": title, "asr": rng.choice(["", rng.choice(own) * 3]), "ocr": ocr}


def write_frames(rng: random.Random, path: Path, label: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(rng.randrange(2**32))
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(rng.randrange(1, 4)):
            blocks = noise.integers(0, 256, (4, 4, 3)) // 2 + np.array([(label * 60) % 128, label * 30, 100])
            pixels = np.kron(blocks, np.ones((BLOCK, BLOCK, 1))).clip(0, 255).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
            archive.writestr(f"{i:04d}.jpg", buffer.getvalue())


def write_params(folds: list[int], **changes: object) -> None:
    """The committed params, smaller; keys with dots are set last."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values: dict[str, object] = {
        "data.root": "raw",
        "data.generated": [],
        "folds": folds,
        "split.n_folds": N_FOLDS,
        "split.holdout": 0.2,
        "text.vocab_size": 400,
        "text.max_unknown": 1.0,
        "encoders.small.adapt.epochs": 0,
        "encoders.small.config.vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16},
        "student.text.sizes": {
            "layers": 1,
            "hidden": 16,
            "heads": 2,
            "intermediate": 32,
            "max_positions": 64,
            "dropout": 0.1,
            "topics": True,
        },
        "models.dual_stream.layers": 1,
        "average_weights.batch_size": 16,
        "ensemble.bootstrap": 100,
    }
    for key, value in (values | changes).items():
        *parents, name = key.split(".")
        block = params
        for parent in parents:
            block = block[parent]
        block[name] = value
    Path("params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True), encoding="utf-8")


def run_stage(name: str, *arguments: str) -> None:
    """A stage as `python -m stages.<name>` runs it, in this process and in the working directory."""
    before, sys.argv = sys.argv, [f"stages/{name}.py", *arguments]
    try:
        importlib.import_module(f"stages.{name}").main()
    finally:
        sys.argv = before


def build_stores() -> None:
    """Raw videos to stores, in the working directory."""
    write_raw(Path("raw"))
    for stage in ("ingest", "split", "tokenize"):
        run_stage(stage)
    torch.manual_seed(0)
    encoder = Path("models/clip/small")
    encoder.mkdir(parents=True)
    save_encoder(encoder, load_vision_encoder(load(EncoderParams, "encoders.small")), adapted_epochs=0)
    for split in SIZES:
        run_stage("extract_frames", "--encoder", "small", "--split", split)


def write_students(arch: str, folds: Sequence[int | str], checkpoints: int = 2, models: Path = Path("models")) -> None:
    """What `finetune` (or, for fold `all`, `refit`) leaves, with random weights; seeded by fold."""
    videos, labeled = open_videos("labeled", "small"), open_labeled()
    for fold in folds:
        folder = models / "finetune" / arch / str(fold)
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(100 if isinstance(fold, str) else fold)
        model = lively_model(arch, videos)
        for epoch in range(checkpoints):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.002 * torch.randn_like(parameter)
            save_weights(folder / f"epoch-{epoch}.safetensors", model)
        save_config(folder, model)
        (folder / "curves.csv").write_text("epoch,step,lr,loss\n0,1,0.1,2.0\n0,9,0.0,1.0\n")
        scores = {"ema": 0.5, "raw": 0.4}
        write_json(folder / "metrics.json", {"epochs": [scores] * checkpoints} | scores)
        unseen = [] if isinstance(fold, str) else [fold, HOLDOUT]
        write_json(folder / ORIGIN, origin_of(labeled, np.flatnonzero(~np.isin(labeled.fold, unseen)), N_FOLDS))


def lively_model(arch: str, videos: Videos) -> Any:
    """Random weights large enough that logits depend on the input, and no class is preferred on the whole."""
    student, inputs = load(StudentParams), load(StudentParams).inputs
    shape = videos.special.size, videos.features.dim, len(read_categories())
    model = build_model(arch, student.text, load(architecture(arch).Params, f"models.{arch}"), *shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
        logits = predict_logits(model, videos.dataset(np.arange(len(videos)), inputs), 16, "cpu")
        bias = [p for p in model.head.parameters() if p.shape == (model.n_classes,)][-1]
        bias -= torch.from_numpy(logits.mean(axis=0))
    return model


def write_upstream_metrics(archs: list[str]) -> None:
    """Metrics and curves of the stages that are left out here."""
    counts = {"leaky": False, "teacher_out_of_fold": {"accuracy": 0.5}, "pool": {"accuracy": 0.52}}
    write_json("metrics/pseudo_label.json", counts)
    for folder in (Path("models/teacher/0"), *(Path("models/pretrain") / arch / "all" for arch in archs)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "curves.csv").write_text("epoch,step,lr,loss\n0,1,0.1,3.0\n0,5,0.0,1.0\n")
        write_json(folder / "metrics.json", {"mlm_accuracy": 0.3, "mlm_by_guess": 0.1, "mlm_asked": 1000})


def finish_pipeline(archs: list[str]) -> None:
    for arch in archs:
        run_stage("average_weights", "--arch", arch)
        run_stage("reweight", "--arch", arch)
    write_upstream_metrics(archs)
    run_stage("reference")
    run_stage("ensemble")


@functools.cache
def finished() -> Path:
    """A finished project with two folds of both architectures, built once per test run. For reading."""
    folder = tempfile.mkdtemp(prefix="framefold-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    project = Path(folder) / "project"
    project.mkdir()
    with contextlib.chdir(project):
        write_params(FOLDS)
        build_stores()
        for arch in ARCHS:
            write_students(arch, FOLDS)
        finish_pipeline(ARCHS)
    return project


def copy(target: Path) -> Path:
    """The finished project once more, for changing."""
    shutil.copytree(finished(), target)
    return target
