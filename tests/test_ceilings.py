"""What cheap methods could gain at most: .venv/bin/python -m pytest tests/test_ceilings.py"""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ceilings
from framefold.evaluation.splits import Target
from framefold.inference.reweighting import Setting
from tests import tiny_project

CATEGORIES = tiny_project.CATEGORIES
METHODS = ("formula", "priors")


def test_the_ceiling_is_the_best_of_all_candidates_by_the_truth_itself():
    truth = np.array([0, 0, 1, 1, 2, 3])
    target = Target(np.arange(6), truth, CATEGORIES)
    probs = np.eye(4)[[0, 0, 0, 1, 2, 3]] * 0.4 + 0.15  # the third video is called 0
    probs[2] = [0.5, 0.45, 0.03, 0.02]
    settings = [Setting({}, np.array([1.0, weight, 1.0, 1.0])) for weight in (1.0, 1.2, 9.0)]
    candidates = list(ceilings.reweighted(probs, settings))
    scores = [ceilings.score(target, candidate) for candidate in candidates]
    assert ceilings.ceiling(target, candidates) == scores[1] == 1.0
    assert max(scores[0], scores[2]) < 1.0


def test_gains_of_the_average_are_told_fold_by_fold_and_epoch_by_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for fold, gains in ((0, [0.2, 0.1]), (1, [0.0, -0.1])):
        folder = Path("models/finetune/single_stream") / str(fold)
        folder.mkdir(parents=True)
        epochs = [{"raw": 0.5, "ema": 0.5 + gain} for gain in gains]
        (folder / "metrics.json").write_text(json.dumps({"epochs": epochs}), encoding="utf-8")
    np.testing.assert_allclose(ceilings.ema_gains("single_stream", [0, 1]), [[0.2, 0.1], [0.0, -0.1]])


def test_it_tells_every_part_of_a_finished_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.chdir(tiny_project.copy(tmp_path / "project"))
    monkeypatch.setattr("sys.argv", ["ceilings"])
    with caplog.at_level("INFO"):
        ceilings.main()
    rows = [line.strip("| ").split(" | ") for line in caplog.messages if line.startswith("| ")]
    assert rows[0][-3:] == ["out_of_fold", "holdout", "test"]
    assert [row[:2] for row in rows[1:]] == [
        *([arch, what] for arch in tiny_project.ARCHS for what in ("none", *(f"class weights, {m}" for m in METHODS))),
        ["ensemble", "blend weights, simplex"],
    ]
    gains = [float(cell) for row in rows[1:] if row[1] != "none" for cell in row[2:]]
    assert min(gains) >= 0  # the first candidate is the one that changes nothing
    assert sum("EMA minus raw" in line for line in caplog.messages) == len(tiny_project.ARCHS)
