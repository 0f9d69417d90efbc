"""Extraction takes constant memory: .venv/bin/python -m pytest -m medium tests/test_streams_features.py

The features and the decoded frames that ten times the videos bring are larger than the growth that is allowed, so
holding either would show.
"""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from memory import peak_memory
from mini_root import PARAMS, jpeg

from framefold.data.manifest import write_manifest, zip_path
from framefold.models.vision import load_vision_encoder, save_encoder
from framefold.params.base import validate
from framefold.params.encoders import EncoderParams
from framefold.storage import write_json, write_parquet

pytestmark = pytest.mark.medium

DEMO = {"labeled": 1600, "unlabeled": 8000}  # the one as frames, the other as given features
ALLOWED, ALLOWED_PER_RECORD = 64 << 20, 64  # bytes that the peak may grow by, and this much a record
DIM = 256  # of the given features: 1.5 KiB a video
ENCODER = Path("models/clip/small")
# The stage with shards that have no end
UNBOUNDED = """
import runpy
from framefold.data import shards
shards.MIN_VIDEOS = shards.MAX_VIDEOS = 1 << 30
runpy.run_module("stages.extract_frames", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are decoded where memory is measured."""
    monkeypatch.setenv("FRAMEFOLD_WORKERS", "0")
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    # every shard ends with a batch of another size, and oneDNN keeps a kernel for each size: a cache that is bounded
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8")


def make_root(folder: Path, split: str, videos: int) -> list[str]:
    """params.yaml at smoke size and samples; returns their ids."""
    params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    params["data"]["root"], params["encoders"] = "raw", smoke_encoders()
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    ids = [str(10**19 + row) for row in range(videos)]
    write_parquet(folder / "data/samples" / f"{split}.parquet", pa.table({"id": ids}))
    return ids


def smoke_encoders() -> dict:
    return yaml.safe_load((PARAMS.parent / "profiles/smoke.yaml").read_text(encoding="utf-8"))["encoders"]


def write_zips(folder: Path, split: str, ids: list[str]) -> None:
    """Layout zip_frames: two small frames a video, and the encoder of the smoke profile with random weights."""
    with zipfile.ZipFile(folder / "any.zip", "w") as archive:
        for number in range(2):
            archive.writestr(zipfile.ZipInfo(f"{number}.jpg"), jpeg(number, size=32))
    for video_id in ids:
        path = zip_path(folder / "raw", split, video_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / "any.zip", path)  # made and deleted faster than 16,000 files
    write_manifest(folder / "raw")
    params = validate(EncoderParams, smoke_encoders()["small"], "encoders.small", "smoke.yaml")
    save_encoder(folder / ENCODER, load_vision_encoder(params), adapted_epochs=0)


def write_archive(folder: Path, split: str, ids: list[str]) -> None:
    """Layout zip_feats: three frames a video."""
    buffer = io.BytesIO()
    np.save(buffer, np.ones((3, DIM), np.float16))
    (folder / "raw/zip_feats").mkdir(parents=True)
    with zipfile.ZipFile(folder / "raw/zip_feats" / f"{split}.zip", "w") as archive:
        for video_id in ids:
            archive.writestr(zipfile.ZipInfo(f"{video_id}.npy"), buffer.getvalue())
    write_manifest(folder / "raw")
    config = {"recipe": None, "preprocess": None, "dim": DIM, "weights_sha256": None, "adapted_epochs": 0}
    write_json(folder / ENCODER / "config.json", config)


def peak(folder: Path, split: str, module: str = "stages.extract_frames") -> int:
    return peak_memory([module, "--encoder", "small", "--split", split], folder)


def allowed(split: str) -> int:
    return ALLOWED + ALLOWED_PER_RECORD * 9 * DEMO[split]


def test_frames_of_ten_times_the_demo_take_no_more_memory(tmp_path: Path):
    peaks = []
    for times in (1, 10):
        folder = tmp_path / str(times)
        folder.mkdir()
        write_zips(folder, "labeled", make_root(folder, "labeled", DEMO["labeled"] * times))
        peaks.append(peak(folder, "labeled"))
    print(f"peaks: {peaks}")
    assert peaks[1] - peaks[0] < allowed("labeled"), f"{peaks[1] - peaks[0] >> 20} MiB more"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two projects with given features, the demo's size and ten times as large."""
    folders = []
    for times in (1, 10):
        folder = tmp_path_factory.mktemp("given")
        write_archive(folder, "unlabeled", make_root(folder, "unlabeled", DEMO["unlabeled"] * times))
        folders.append(folder)
    return folders


def test_given_features_of_ten_times_the_demo_take_no_more_memory(given: list[Path]):
    peaks = [peak(folder, "unlabeled") for folder in given]
    print(f"peaks: {peaks}")
    assert peaks[1] - peaks[0] < allowed("unlabeled"), f"{peaks[1] - peaks[0] >> 20} MiB more"


def test_shards_without_end_would_show(given: list[Path]):
    """The check above can fail: the same, but a shard takes in all videos."""
    for folder in given:
        (folder / "unbounded.py").write_text(UNBOUNDED, encoding="utf-8")
    peaks = [peak(folder, "unlabeled", "unbounded") for folder in given]
    assert peaks[1] - peaks[0] > allowed("unlabeled"), f"{peaks[1] - peaks[0] >> 20} MiB more"
