"""Frames a second of extraction, against decoding alone and the encoder alone: python -m benchmarks.extraction

On a GPU with ViT-B/16 and ViT-L/14: decoding has the CPU and the tower the GPU, so the limit is the slower of the two.
On a CPU with the demo's small tower: both share the cores, so the limit is one after the other. Frames are generated
JPEGs in the official layout; towers have random weights, which cost the same. --rehearse: a few videos on the CPU.
"""

import argparse
import importlib.util
import io
import logging
import os
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from benchmarks.figures import Figures, report, scratch_project, use_all_cores
from benchmarks.names import GPU_EXTRACTION
from benchmarks.wechat import wechat
from framefold.data.extraction import Part, extract, open_encoder, open_source
from framefold.data.features import write_store
from framefold.data.manifest import SplitManifest, write_manifest, zip_path
from framefold.data.shards import KeptShards
from framefold.errors import command
from framefold.models.vision import load_encoder, load_vision_encoder, save_encoder
from framefold.params.base import load
from framefold.params.encoders import EncoderParams
from framefold.runtime import load_runtime
from framefold.storage import write_parquet

log = logging.getLogger(__name__)

SPLIT = "unlabeled"
DISTINCT = 50  # images; videos repeat them
DETAIL = 8  # pixels of one blob of the images
TIMM_TOWERS = {"vit_b16": "vit_base_patch16_clip_224", "vit_l14": "vit_large_patch14_clip_224"}  # without open_clip
WARM_UP = 8  # the part of the videos that goes before: 1 / 8
ENCODED = 20  # batches through the tower alone


@dataclass(frozen=True)
class Setting:
    """One tower and what it reads."""

    name: str
    params: EncoderParams
    videos: int
    frames: int  # of one video
    size: tuple[int, int]  # pixels of a frame


def gpu_settings() -> list[Setting]:
    return [Setting(name, tower_params(name), 2048, 32, (640, 360)) for name in TIMM_TOWERS]


def tower_params(name: str) -> EncoderParams:
    params = wechat(EncoderParams, f"encoders.{name}").model_copy(update={"weights": None})
    if importlib.util.find_spec("open_clip"):
        return params
    return params.model_copy(update={"library": "timm", "name": TIMM_TOWERS[name], "kwargs": {}})


def cpu_setting(videos: int) -> Setting:
    params = load(EncoderParams, "encoders.small")
    assert params.config is not None
    side = params.config["vision_cfg"]["image_size"]
    return Setting("cpu_small", params, videos, params.max_frames, (side, side))


# Data


def write_videos(root: Path, setting: Setting) -> list[str]:
    """Zips and manifest; returns the ids."""
    rng = np.random.default_rng(0)
    images = [jpeg(rng, setting.size) for _ in range(DISTINCT)]
    ids = [f"{10**18 + number}" for number in range(setting.videos)]
    for number, video_id in enumerate(ids):
        path = zip_path(root, SPLIT, video_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for frame in range(setting.frames):
                archive.writestr(f"{frame:04d}.jpg", images[(number + frame) % DISTINCT])
    write_manifest(root)
    return ids


def jpeg(rng: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Blobs of colour: compresses about as a photograph does."""
    blobs = rng.integers(0, 256, (size[1] // DETAIL, size[0] // DETAIL, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# Rates, in frames a second


def extraction_rate(root: Path, encoder: Path, ids: list[str], setting: Setting) -> float:
    """Of the whole path into a store, from the difference of two runs: starting up does not count."""
    few = len(ids) // WARM_UP
    short, long = (extraction_seconds(root, encoder, part, setting.params) for part in (ids[:few], ids))
    return (len(ids) - few) * setting.frames / (long - short)


def extraction_seconds(root: Path, encoder: Path, ids: list[str], params: EncoderParams) -> float:
    """As stages/extract_frames.py does it."""
    samples, target = root / "samples.parquet", root / f"features-{len(ids)}"
    write_parquet(samples, pa.table({"id": pa.array(ids, pa.string())}))
    start = time.perf_counter()
    with open_source(root, SPLIT, encoder, params.max_frames, params.batch_size, lambda: None) as source:
        kept = KeptShards(target.with_suffix(".parts"), source.dim)
        keys = extract(source, samples, kept, "", Part(), lambda: None)
    counts = write_store(target, kept, keys, {})
    if counts["videos"] != len(ids) or counts["rejected_frames"]:
        raise ValueError(f"extraction gave {counts} for {len(ids)} videos")
    return time.perf_counter() - start


def decoding_rate(root: Path, encoder: Path, ids: list[str], setting: Setting) -> float:
    manifest, preprocess = SplitManifest(root, SPLIT), load_encoder(encoder).preprocess
    entries = [manifest.find(video_id) for video_id in ids]
    with open_encoder(root, encoder, preprocess, setting.params.max_frames, lambda: None) as (decode, _):
        for _ in decode(entries[: len(ids) // WARM_UP]):
            pass
        start = time.perf_counter()
        frames = sum(len(video.pixels) for video in decode(entries))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return frames / (time.perf_counter() - start)


@torch.inference_mode()
def encoding_rate(encoder: Path, batch_size: int, device: torch.device) -> float:
    """The tower alone, on images that are on the device already, in the precision of `FrameEncoder`."""
    tower = load_encoder(encoder).to(device)
    side = tower.preprocess.image_size
    images = torch.randn(batch_size, 3, side, side, device=device)
    with torch.autocast("cuda", torch.float16, enabled=device.type == "cuda"):
        for _ in range(3):
            tower(images)
        start = now(device)
        for _ in range(ENCODED):
            tower(images)
        return ENCODED * batch_size / (now(device) - start)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# Figures


def measure(setting: Setting, device: torch.device, folder: Path) -> Figures:
    """Rates of extraction, decoding and tower, and the share of the limit that extraction reaches."""
    root, encoder = folder / setting.name, folder / setting.name / "encoder"
    encoder.mkdir(parents=True)
    save_encoder(encoder, load_vision_encoder(setting.params), 0)
    ids = write_videos(root, setting)
    decode, encode = (
        decoding_rate(root, encoder, ids, setting),
        encoding_rate(encoder, setting.params.batch_size, device),
    )
    whole = extraction_rate(root, encoder, ids, setting)
    limit = min(decode, encode) if device.type == "cuda" else 1 / (1 / decode + 1 / encode)
    rates = {"extract": whole, "decode": decode, "encode": encode}
    figures: Figures = {f"{what}_frames_per_second_{setting.name}": rate for what, rate in rates.items()}
    log.info("%s: %s", setting.name, figures)
    return figures | {f"extract_share_of_limit_{setting.name}": whole / limit}


def measure_gpu(device: torch.device, folder: Path) -> Figures:
    found = [measure(setting, device, folder) for setting in gpu_settings()]
    figures = {name: value for part in found for name, value in part.items()}
    shares = [value for name, value in figures.items() if name.startswith("extract_share") and value is not None]
    return figures | {"extract_share_of_limit": min(shares)}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="a few videos on the CPU: does the script work?")
    rehearse, device = parser.parse_args().rehearse, load_runtime().torch_device()
    with scratch_project() as folder:
        if device.type == "cuda" and not rehearse:
            os.environ.setdefault("FRAMEFOLD_WORKERS", str(len(os.sched_getaffinity(0))))
            report(measure_gpu(device, folder))
            return
        if not rehearse:
            use_all_cores()
        figures = measure(cpu_setting(64 if rehearse else 1024), torch.device("cpu"), folder)
        report(dict.fromkeys(GPU_EXTRACTION) | figures)


if __name__ == "__main__":
    main()
