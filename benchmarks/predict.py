"""How fast `framefold predict` labels new videos: python benchmarks/predict.py [--sizes wechat] [--videos 4096]

Makes a bundle with random weights and raw videos in a temporary folder, and predicts them in rounds: `in turn`, where
students wait for the encoder and it for them, against `ahead`, as the command does it where there is room for both.
Labels must be equal. Prints one JSON object: seconds, videos/s and their ratio, all of this run. Sizes `small` are
those of params.yaml; `wechat`, of profiles/wechat.yaml, needs a GPU: without one its figures are null. The limit of the
challenge is 70 videos/s on two V100.
"""

import argparse
import io
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from framefold.data.tokenizer import Tokenizer
from framefold.data.tokens import SPECIAL_NAMES
from framefold.errors import command
from framefold.inference import predict_command
from framefold.inference.bundle import FILE, Bundle, encoder_folder, member_folder
from framefold.inference.overlap import Ahead, InTurn
from framefold.inference.predict_command import SHARDS_AHEAD
from framefold.models.registry import architecture, build_model, save_model
from framefold.models.vision import load_vision_encoder, save_encoder
from framefold.params.base import validate
from framefold.params.encoders import EncoderParams
from framefold.params.models import InputParams, TextModelParams
from framefold.params.profiles import apply_profile
from framefold.storage import write_json

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 70.0  # videos/s
CLASSES = 200
BASE = {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072, "max_positions": 512, "dropout": 0.1}
VOCABULARY = {"small": 6000, "wechat": 21128}  # entries; of chinese-roberta-wwm-ext in the second place
PIXELS = {"small": (96, 64), "wechat": (640, 360)}  # of a frame as it comes
DISTINCT = 16  # zips that all videos are links to


def read_params(sizes: str, folder: Path) -> dict[str, Any]:
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "profiles", folder / "profiles")
    if sizes == "wechat":
        apply_profile("wechat", [], folder)
    params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    encoder = params["encoders"][params["student"]["encoder"]]
    encoder |= {"weights": None, "adapt": encoder["adapt"] | {"epochs": 0}}
    text = params["student"]["text"]
    text |= {"folder": None, "sizes": (text["sizes"] or BASE) | {"topics": False}}
    return params


def write_bundle(folder: Path, params: dict[str, Any], vocabulary: int) -> None:
    """All members of the params, with random weights."""
    name, archs, folds = params["student"]["encoder"], params["archs"], params["folds"]
    encoder = validate(EncoderParams, params["encoders"][name], "encoders", "params.yaml")
    tower = load_vision_encoder(encoder)
    encoder_folder(folder, name).mkdir(parents=True)
    save_encoder(encoder_folder(folder, name), tower, adapted_epochs=0)
    (folder / "tokenizer").mkdir()
    characters = [chr(0x4E00 + i) for i in range(vocabulary - len(SPECIAL_NAMES))]
    Tokenizer.of_vocabulary([*SPECIAL_NAMES.values(), *characters], lowercase=True).save(folder / "tokenizer")
    text = validate(TextModelParams, params["student"]["text"], "student.text", "params.yaml")
    for arch in archs:
        sizes = validate(architecture(arch).Params, params["models"][arch], f"models.{arch}", "params.yaml")
        for fold in folds:
            member_folder(folder, arch, fold).mkdir(parents=True)
            model = build_model(arch, text, sizes, vocabulary, tower.dim, CLASSES)
            save_model(member_folder(folder, arch, fold), model)
    write_json(folder / FILE, describe(params, encoder).model_dump(mode="json"))


def describe(params: dict[str, Any], encoder: EncoderParams) -> Bundle:
    archs = params["archs"]
    return Bundle(
        categories=[f"{label // 10:02d}{label % 10:02d}" for label in range(CLASSES)],
        archs=archs,
        folds=params["folds"],
        blend="probs",
        blend_weights=[1 / len(archs)] * len(archs),
        class_weights={arch: [1.0] * CLASSES for arch in archs},
        encoder=params["student"]["encoder"],
        max_frames=encoder.max_frames,
        encoder_batch_size=encoder.batch_size,
        batch_size=params["average_weights"]["batch_size"],
        inputs=validate(InputParams, params["student"]["inputs"], "student.inputs", "params.yaml"),
        max_tokens=params["text"]["max_tokens"],
        max_text=params["ingest"]["max_text"],
    )


def write_videos(root: Path, count: int, inputs: dict[str, int], frames: int, pixels: tuple[int, int]) -> None:
    """Videos with as much text and as many frames as the students read."""
    rng, records = np.random.default_rng(0), []
    zips = [write_zip(root / f"{number}.zip", rng, frames, pixels) for number in range(DISTINCT)]
    for row in range(count):
        video = str(10**18 + row)
        title, asr, ocr = (text_of(rng, inputs[name]) for name in ("title", "asr", "ocr"))
        records.append({"id": video, "title": title, "asr": asr, "ocr": [{"time": 0, "text": ocr}]})
        path = root / "zip_frames/test" / video[-3:] / f"{video}.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(zips[row % DISTINCT], path)
    (root / "annotations").mkdir()
    (root / "annotations/test.json").write_text(json.dumps(records), encoding="utf-8")


def write_zip(path: Path, rng: np.random.Generator, frames: int, pixels: tuple[int, int]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(frames):
            coarse = Image.fromarray(rng.integers(0, 256, (9, 16, 3), dtype=np.uint8))
            buffer = io.BytesIO()
            coarse.resize(pixels, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
            archive.writestr(f"{number:04d}.jpg", buffer.getvalue())
    return path


def text_of(rng: np.random.Generator, length: int) -> str:
    return "".join(chr(0x4E00 + int(i)) for i in rng.integers(0, 3000, length))


def timed(encoded: Callable[[Any], Any], folder: Path) -> tuple[float, str]:
    """Seconds, and the submission."""
    predict_command.encoded = encoded  # type: ignore[assignment]
    start = time.monotonic()
    predict_command.run(folder / "raw", folder / "out.csv", folder / "bundle")
    return time.monotonic() - start, (folder / "out.csv").read_text(encoding="utf-8")


def measure(sizes: str, videos: int, rounds: int, folder: Path) -> dict[str, float]:
    params = read_params(sizes, folder)
    frames = params["encoders"][params["student"]["encoder"]]["max_frames"]
    torch.manual_seed(0)
    write_bundle(folder / "bundle", params, VOCABULARY[sizes])
    (folder / "raw").mkdir()
    write_videos(folder / "raw", videos, params["student"]["inputs"], frames, PIXELS[sizes])
    seconds: dict[str, list[float]] = {"in_turn": [], "ahead": []}
    submissions = set()
    for _ in range(rounds):
        for name, how in (("in_turn", InTurn), ("ahead", lambda encoding: Ahead(encoding, SHARDS_AHEAD))):
            taken, submission = timed(how, folder)
            seconds[name].append(taken)
            submissions.add(submission)
    assert len(submissions) == 1, "labels depend on the overlap"
    in_turn, ahead = (statistics.median(seconds[name]) for name in ("in_turn", "ahead"))
    figures = {"seconds_in_turn": in_turn, "seconds_ahead": ahead, "ratio": in_turn / ahead}
    return figures | {"videos_per_second": videos / ahead, "of_the_limit": videos / ahead / LIMIT}


NOTHING = ("seconds_in_turn", "seconds_ahead", "ratio", "videos_per_second", "of_the_limit")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=["small", "wechat"], default="small")
    parser.add_argument("--videos", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    logging.getLogger().handlers[0].setStream(sys.stderr)  # type: ignore[attr-defined]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    figures: dict[str, float | None] = dict.fromkeys(NOTHING)
    if arguments.sizes == "small" or gpu:
        with tempfile.TemporaryDirectory() as folder:
            figures |= measure(arguments.sizes, arguments.videos, arguments.rounds, Path(folder))
    settings = {"sizes": arguments.sizes, "videos": arguments.videos, "gpu": gpu, "limit": LIMIT}
    print(json.dumps(settings | figures, indent=1))


if __name__ == "__main__":
    main()
