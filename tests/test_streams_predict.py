"""`framefold predict` takes constant memory: .venv/bin/python -m pytest -m medium tests/test_streams_predict.py"""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from head_params import head_params
from memory import peak_memory

from framefold.storage import read_json, write_json
from tests import tiny_project

pytestmark = pytest.mark.medium

VIDEOS, TIMES = 6000, 3  # more than the shards and blocks that are held at a time
DIM, FRAMES = 512, 12  # 12 KiB a video: 140 MiB more, were they held
ALLOWED, ALLOWED_PER_RECORD = 64 << 20, 400  # bytes that the peak may grow by, and this much a record: two ids, a label


def write_videos(root: Path, count: int) -> None:
    """Layout zip_feats, with a bundle of one student that takes such features."""
    (root / "annotations").mkdir(parents=True)
    ids = [str(10**18 + row) for row in range(count)]
    records = [{"id": video, "title": f"红烧牛肉{row}", "asr": "", "ocr": []} for row, video in enumerate(ids)]
    (root / "annotations/test.json").write_text(json.dumps(records), encoding="utf-8")
    buffer = io.BytesIO()
    np.save(buffer, np.ones((FRAMES, DIM), np.float16))
    (root / "zip_feats").mkdir()
    with zipfile.ZipFile(root / "zip_feats/test.zip", "w") as archive:
        for video in ids:
            archive.writestr(zipfile.ZipInfo(f"{video}.npy"), buffer.getvalue())


@pytest.fixture
def bundle(tmp_path) -> Path:
    """The tiny project's, for features of DIM numbers that came with the data, with one member."""
    from framefold.models.registry import build_model, save_model
    from framefold.params.models import SingleStreamParams, TextModelParams, TextSizes

    folder = tmp_path / "bundle"
    shutil.copytree(tiny_project.finished() / "models/ensemble", folder)
    settings = read_json(folder / "bundle.json")
    name, arch = settings["encoder"], "single_stream"
    settings |= {"archs": [arch], "folds": [0], "blend_weights": [1.0], "max_frames": FRAMES}
    settings["class_weights"] = {arch: settings["class_weights"][arch]}
    write_json(folder / "bundle.json", settings)
    shutil.rmtree(folder / "encoders")
    config = {"recipe": None, "preprocess": None, "dim": DIM, "weights_sha256": None}
    write_json(folder / "encoders" / name / "config.json", config)
    sizes = TextSizes(layers=1, hidden=16, heads=2, intermediate=32, max_positions=64, dropout=0.0, topics=False)
    text = TextModelParams(folder=None, sha256=None, sizes=sizes)
    vocabulary = read_json(folder / "tokenizer/config.json")["size"]
    params = SingleStreamParams(**head_params(hidden=16, dropout=0.0))
    model = build_model(arch, text, params, vocabulary, DIM, 4)
    save_model(folder / "members" / arch / "0", model)
    return folder


def test_predicting_three_times_the_videos_takes_no_more_memory(tmp_path, bundle):
    (tmp_path / "command.py").write_text("from framefold.cli import main\nmain()\n")
    peaks = []
    for times in (1, TIMES):
        write_videos(tmp_path / str(times), VIDEOS * times)
        arguments = ["--data", str(times), "--out", f"{times}.csv", "--bundle", str(bundle)]
        peaks.append(peak_memory(["command", "predict", *arguments], tmp_path))
        assert len((tmp_path / f"{times}.csv").read_text().split()) == VIDEOS * times
    print(f"peaks: {peaks}")
    grown = peaks[1] - peaks[0]
    assert grown < ALLOWED + ALLOWED_PER_RECORD * VIDEOS * (TIMES - 1), f"{grown >> 20} MiB more"
