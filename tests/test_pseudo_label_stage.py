"""The pseudo_label stage, run as its command: .venv/bin/python -m pytest -m medium tests/test_pseudo_label_stage.py"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from memory import peak_memory
from stores import CATEGORIES, ROOT, SIZES, make_project, make_teachers, small_params

from framefold.data.origins import ORIGIN
from framefold.data.pseudo_labels import MEAN, NOBODY
from framefold.storage import read_json, write_json

pytestmark = pytest.mark.medium
DEMO = {"labeled": 1600, "unlabeled": 8000, "test": 1500}
ALLOWED, ALLOWED_PER_RECORD = 64 << 20, 64  # bytes that the peak may grow by, and this much a record


def run(root: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "stages.pseudo_label"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


def project(root: Path, sizes: dict[str, int] = SIZES, **teacher) -> Path:
    params = small_params()
    params["teacher"] |= teacher
    params["data"]["root"], params["pretrain"]["per_fold"] = "raw", True
    make_project(root, params, sizes=sizes)
    make_teachers(root, params)
    return root


def test_labels_are_published_with_their_quality_where_the_truth_is_known(tmp_path):
    root = project(tmp_path)
    (root / "raw/annotations").mkdir(parents=True)
    ids = pq.read_table(root / "data/samples/unlabeled.parquet")["id"].to_pylist()
    truth = "\n".join(f"{video},{CATEGORIES[0]}" for video in ids)
    (root / "raw/annotations/unlabeled_truth.csv").write_text(truth, encoding="utf-8")
    assert run(root).returncode == 0
    labels = pq.read_table(root / "data/pseudo/labels.parquet").to_pandas()
    soft = np.load(root / "data/pseudo/soft.npy")
    assert (labels["id"].tolist(), soft.shape) == (ids, (len(ids), len(CATEGORIES)))
    labelled = labels["teacher"] != NOBODY
    assert 0 < (~labels["usable"]).sum() < len(ids) / 5
    assert {MEAN, 0, 1, 2} <= set(labels["teacher"])
    assert np.array_equal(labels["label"][labelled], soft[labelled].argmax(1))
    report = read_json(root / "metrics/pseudo_label.json")
    assert report["pool"]["accuracy"] == pytest.approx((labels["label"][labelled] == 0).mean())
    assert (
        report["teacher_out_of_fold"]["n"] == (pq.read_table(root / "data/folds.parquet")["fold"].to_numpy() >= 0).sum()
    )
    rows = (root / "metrics/plots/pseudo_label_quality.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "source,bucket,confidence,accuracy,n"
    assert {row.split(",")[0] for row in rows[1:]} == {"out_of_fold", "pool"}


def test_a_teacher_that_params_no_longer_name_leaves_no_trace(tmp_path):
    root, other = project(tmp_path / "a"), project(tmp_path / "b", folds=[0, 1])
    params = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    params["teacher"]["folds"] = [0, 1]
    (root / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    assert [run(folder).returncode for folder in (root, other)] == [0, 0]
    outputs = [
        {path.name: path.read_bytes() for path in (folder / "data/pseudo").iterdir()} for folder in (root, other)
    ]
    assert outputs[0] == outputs[1]


def test_a_teacher_that_saw_the_holdout_stops_the_stage_with_one_line(tmp_path):
    root = project(tmp_path)
    origin = read_json(root / "models/teacher/1" / ORIGIN)
    write_json(root / "models/teacher/1" / ORIGIN, origin | {"trained_folds": [-1, *origin["trained_folds"]]})
    result = run(root)
    assert result.returncode == 1
    assert (
        result.stderr.strip() == "error: models/teacher/1: it was trained on the holdout; retrain it with `dvc repro`"
    )
    assert not (root / "data/pseudo").exists()


def test_a_pool_of_ten_times_the_demo_takes_no_more_memory(tmp_path):
    peaks = {}
    for times in (1, 10):
        sizes = DEMO | {"unlabeled": DEMO["unlabeled"] * times}
        root = project(tmp_path / str(times), sizes)
        peaks[times] = peak_memory(["stages.pseudo_label"], root)
    more = 9 * DEMO["unlabeled"]
    assert peaks[10] - peaks[1] < ALLOWED + more * ALLOWED_PER_RECORD, json.dumps(peaks)
