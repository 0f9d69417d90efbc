"""Videos a second of `framefold predict`, its stages overlapped against in turn: python -m benchmarks.predict

Makes a bundle with random weights and raw videos, and predicts them in rounds: in turn, where students wait for the
encoder and it for them, and ahead, where frames are decoded and encoded while students compute. Labels must be equal.
On a CPU at the sizes of params.yaml, all cores for both; on a GPU at those of profiles/wechat.yaml. --rehearse: a few
videos on the CPU.
"""

import argparse
import io
import json
import logging
import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks.extraction import tower_params
from benchmarks.figures import Figures, median, report, scratch_project, use_all_cores
from benchmarks.names import GPU_PREDICT
from benchmarks.wechat import CLASSES, VOCABULARY, merged
from framefold.data.tokenizer import Tokenizer
from framefold.data.tokens import SPECIAL_NAMES
from framefold.errors import command
from framefold.inference import predict_command
from framefold.inference.bundle import FILE, Bundle, encoder_folder, member_folder
from framefold.models.registry import architecture, build_model, save_model
from framefold.models.vision import load_vision_encoder, save_encoder
from framefold.params.base import PARAMS_FILE, read, validate
from framefold.params.encoders import EncoderParams
from framefold.params.models import InputParams, TextModelParams
from framefold.runtime import load_runtime
from framefold.storage import write_json

log = logging.getLogger(__name__)

LIMIT = 70.0  # videos a second, the challenge's, on two V100
BASE = {"layers": 12, "hidden": 768, "heads": 12, "intermediate": 3072, "max_positions": 512, "dropout": 0.1}
DISTINCT = 16  # zips that all videos are links to
WAYS = {"in_turn": False, "ahead": True}


@dataclass(frozen=True)
class Setting:
    """What is predicted with what; `params` as params.yaml has them."""

    params: dict[str, Any]
    encoder: EncoderParams
    vocabulary: int
    pixels: tuple[int, int]  # of a frame as it comes
    videos: int
    rounds: int


def small(videos: int, rounds: int) -> Setting:
    params = read()
    return Setting(params, encoder_of(params), 6000, (96, 64), videos, rounds)


def full_scale() -> Setting:
    params = dict(merged())
    return Setting(params, tower_params(params["student"]["encoder"]), VOCABULARY, (640, 360), 4096, 3)


def encoder_of(params: dict[str, Any]) -> EncoderParams:
    """Of random weights, which cost as much as trained ones."""
    name = params["student"]["encoder"]
    encoder = validate(EncoderParams, params["encoders"][name], f"encoders.{name}", PARAMS_FILE)
    return encoder.model_copy(update={"weights": None})


def text_model(params: dict[str, Any]) -> TextModelParams:
    sizes = params["student"]["text"]["sizes"] or BASE
    content = {"folder": None, "sha256": None, "sizes": sizes | {"topics": False}}
    return validate(TextModelParams, content, "student.text", PARAMS_FILE)


# Bundle and videos


def write_bundle(folder: Path, setting: Setting) -> None:
    """All members of the params, with random weights."""
    params, tower = setting.params, load_vision_encoder(setting.encoder)
    encoder = encoder_folder(folder, params["student"]["encoder"])
    encoder.mkdir(parents=True)
    save_encoder(encoder, tower, adapted_epochs=0)
    (folder / "tokenizer").mkdir()
    characters = [chr(0x4E00 + i) for i in range(setting.vocabulary - len(SPECIAL_NAMES))]
    Tokenizer.of_vocabulary([*SPECIAL_NAMES.values(), *characters], lowercase=True).save(folder / "tokenizer")
    for arch in params["archs"]:
        sizes = validate(architecture(arch).Params, params["models"][arch], f"models.{arch}", PARAMS_FILE)
        for fold in params["folds"]:
            member_folder(folder, arch, fold).mkdir(parents=True)
            model = build_model(arch, text_model(params), sizes, setting.vocabulary, tower.dim, CLASSES)
            save_model(member_folder(folder, arch, fold), model)
    write_json(folder / FILE, describe(setting).model_dump(mode="json"))


def describe(setting: Setting) -> Bundle:
    params, archs = setting.params, setting.params["archs"]
    return Bundle(
        categories=[f"{label // 10:02d}{label % 10:02d}" for label in range(CLASSES)],
        archs=archs,
        folds=params["folds"],
        blend="probs",
        blend_weights=[1 / len(archs)] * len(archs),
        class_weights={arch: [1.0] * CLASSES for arch in archs},
        encoder=params["student"]["encoder"],
        max_frames=setting.encoder.max_frames,
        encoder_batch_size=setting.encoder.batch_size,
        batch_size=params["average_weights"]["batch_size"],
        inputs=validate(InputParams, params["student"]["inputs"], "student.inputs", PARAMS_FILE),
        max_tokens=params["text"]["max_tokens"],
        max_text=params["ingest"]["max_text"],
    )


def write_videos(root: Path, setting: Setting) -> None:
    """Videos with as much text and as many frames as the students read."""
    rng, inputs, records = np.random.default_rng(0), setting.params["student"]["inputs"], []
    frames = setting.encoder.max_frames
    zips = [write_zip(root / f"{number}.zip", rng, frames, setting.pixels) for number in range(DISTINCT)]
    for row in range(setting.videos):
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


# Rates


def measure(setting: Setting, folder: Path) -> dict[str, float]:
    """Videos a second as the command works here, and how much longer it takes in turn than ahead."""
    torch.manual_seed(0)
    write_bundle(folder / "bundle", setting)
    (folder / "raw").mkdir()
    write_videos(folder / "raw", setting)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    submissions = {timed(False, folder)[1]}  # warms up
    for _ in range(setting.rounds):
        for name, ahead in WAYS.items():
            taken, submission = timed(ahead, folder)
            seconds[name].append(taken)
            submissions.add(submission)
    if len(submissions) != 1:
        raise ValueError("labels depend on the overlap")
    log.info("seconds: %s", {name: [round(taken, 1) for taken in each] for name, each in seconds.items()})
    own = "ahead" if predict_command.goes_ahead() else "in_turn"
    rate = setting.videos / median(seconds[own])
    return {"videos_per_s": rate, "overlap_ratio": median(seconds["in_turn"]) / median(seconds["ahead"])}


def timed(ahead: bool, folder: Path) -> tuple[float, str]:
    """Seconds of the whole command, its start left out, and the submission."""
    with patch.object(predict_command, "goes_ahead", lambda: ahead):
        start = time.perf_counter()
        predict_command.run(folder / "raw", folder / "out.csv", folder / "bundle")
        return time.perf_counter() - start, (folder / "out.csv").read_text(encoding="utf-8")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="a few videos on the CPU: does the script work?")
    rehearse, device = parser.parse_args().rehearse, load_runtime().torch_device()
    with scratch_project() as folder:
        if device.type == "cuda" and not rehearse:
            os.environ.setdefault("FRAMEFOLD_WORKERS", str(len(os.sched_getaffinity(0))))
            found = measure(full_scale(), folder)
            figures: Figures = {f"predict_{what}_wechat": value for what, value in found.items()}
            report(figures | {"predict_share_of_limit_wechat": found["videos_per_s"] / LIMIT})
            return
        if not rehearse:
            use_all_cores()
        found = measure(small(40, 1) if rehearse else small(2048, 5), folder)
        own = {"predict_videos_per_s_small": found["videos_per_s"], "predict_overlap_ratio": found["overlap_ratio"]}
        report(dict.fromkeys(GPU_PREDICT) | own)


if __name__ == "__main__":
    main()
