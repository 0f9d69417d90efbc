"""Memory does not grow with the data. Run: .venv/bin/python -m pytest -m medium tests/test_streams.py"""

import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from memory import peak_memory
from mini_root import PARAMS, words

from framefold.data.manifest import write_manifest

DEMO = {"labeled": 1600, "unlabeled": 8000, "test": 1500}
ALLOWED = 64 << 20  # bytes that the peak may grow by, and this much a record, where ids are compared
ALLOWED_PER_RECORD = 64


def write_records(path: Path, split: str, n: int) -> None:
    """`n` records with texts of the demo's length, written one at a time."""
    pool = [words(seed, 40) for seed in range(997)]
    with open(path, "w", encoding="utf-8") as file:
        for row in range(n):
            title = pool[row % 997] + pool[row * 31 % 997] + str(row)
            ocr = [{"time": 0, "text": pool[row * 7 % 997]}]
            record = {"id": video_id(split, row), "title": title, "asr": pool[row % 991], "ocr": ocr}
            record |= {"category_id": f"{row % 20:02d}00"} if split == "labeled" else {}
            file.write(("[" if row == 0 else ",\n") + json.dumps(record, ensure_ascii=False))
        file.write("]")


def video_id(split: str, row: int) -> str:
    return str(10**19 + list(DEMO).index(split) * 10**12 + row)


def make_root(folder: Path, times: int) -> Path:
    """A data root of `times` the demo's size, in the layout that needs no 100,000 zips."""
    (folder / "raw" / "annotations").mkdir(parents=True)
    (folder / "raw" / "zip_feats").mkdir()
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 2), np.float16))
    for split, n in DEMO.items():
        write_records(folder / "raw" / "annotations" / f"{split}.json", split, n * times)
        with zipfile.ZipFile(folder / "raw" / "zip_feats" / f"{split}.zip", "w") as archive:
            for row in range(n * times):
                archive.writestr(zipfile.ZipInfo(f"{video_id(split, row)}.npy"), buffer.getvalue())
    write_manifest(folder / "raw")
    params = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    params["data"]["root"] = "raw"
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return folder


@pytest.mark.medium
def test_ingest_of_ten_times_the_demo_takes_no_more_memory(tmp_path: Path) -> None:
    """Peak memory of ingest at 111,000 records against 11,100."""
    peaks = {}
    for times in (1, 10):
        folder = make_root(tmp_path / str(times), times)
        peaks[times] = peak_memory(["stages.ingest"], folder)
        shutil.rmtree(folder)
    print(f"peaks: {peaks}")
    grown = peaks[10] - peaks[1]
    assert grown < ALLOWED + ALLOWED_PER_RECORD * 9 * sum(DEMO.values()), f"{grown >> 20} MiB more"


@pytest.mark.medium
def test_manifest_of_ten_times_the_demo_takes_no_more_memory(tmp_path: Path) -> None:
    """Peak memory of writing the manifest of a large archive."""
    script = "import sys; from framefold.data.manifest import write_manifest; write_manifest(sys.argv[1])\n"
    peaks = []
    for times in (1, 10):
        folder = make_root(tmp_path / str(times), times)
        (folder / "index.py").write_text(script, encoding="utf-8")
        peaks.append(peak_memory(["index", "raw"], folder))
    print(f"peaks: {peaks}")
    assert peaks[1] - peaks[0] < ALLOWED + ALLOWED_PER_RECORD * 9 * sum(DEMO.values())
