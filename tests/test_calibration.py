"""Temperature scaling of the teachers. Run: .venv/bin/python -m pytest tests/test_calibration.py"""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stores import CATEGORIES, make_project, make_teachers, small_params
from tiny_project import run_stage

from framefold.data.pseudo_labels import MEAN
from framefold.data.videos import open_labeled, open_videos
from framefold.evaluation.calibration import (
    calibration,
    fit_temperature,
    negative_log_likelihood,
)
from framefold.inference.committee import OutOfFold
from framefold.inference.predict import predict_logits
from framefold.inference.predictions import read_predictions, write_predictions
from framefold.models.registry import load_model
from framefold.params.base import load
from framefold.params.teacher import TeacherParams
from framefold.storage import read_json, read_parquet


def drawn(scale: float, members: int = 1, seed: int = 0) -> OutOfFold:
    """Labels drawn from softmax(z), logits scale * z: the right temperature of one member is about `scale`."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2, (4000, 6))
    probs = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    truth = (probs.cumsum(1) < rng.random((4000, 1))).sum(1).clip(max=5)
    each = [scale * z + (rng.normal(0, 0.5, z.shape) if members > 1 else 0) for _ in range(members)]
    return OutOfFold(truth, np.stack(each).astype(np.float32))


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_the_temperature_is_that_of_torch_lbfgs(scale):
    known = drawn(scale)
    logits, truth = torch.from_numpy(known.logits[0]).double(), torch.from_numpy(known.truth)
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), truth)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = fit_temperature(known.probs, known.truth)
    assert found == pytest.approx(log_temperature.exp().item(), rel=1e-4)
    assert found == pytest.approx(scale, rel=0.1)


def test_of_several_models_the_mean_of_their_probabilities_is_fitted():
    known = drawn(0.5, members=3)
    found = fit_temperature(known.probs, known.truth)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 2000))
    best = min(grid, key=lambda t: negative_log_likelihood(known.probs(t), known.truth))
    assert found == pytest.approx(best, rel=5e-3)


def test_scaling_mends_underconfident_teachers():
    known = drawn(0.4)
    before = calibration(known.probs(1.0), known.truth)
    after = calibration(known.probs(fit_temperature(known.probs, known.truth)), known.truth)
    assert after["nll"] < before["nll"] - 0.1
    assert after["ece"] < 0.03 < 0.2 < before["ece"]


def test_nll_and_ece_are_those_computed_by_hand():
    known = drawn(1.7)
    probs = known.probs(1.0)
    rows = list(zip(probs, known.truth, strict=True))
    assert negative_log_likelihood(probs, known.truth) == pytest.approx(-np.mean([np.log(p[t]) for p, t in rows]))
    gap = 0.0
    for low in range(15):
        inside = [(p.max(), p.argmax() == t) for p, t in rows if low <= 15 * p.max() < low + 1]
        if inside:
            gap += len(inside) * abs(np.mean([sure for sure, _ in inside]) - np.mean([hit for _, hit in inside]))
    assert calibration(probs, known.truth)["ece"] == pytest.approx(gap / len(rows))
    assert calibration(np.eye(3), np.arange(3))["ece"] == 0  # certain and right, in the last bin


# ---- the stage

TEACHERS = [Path("models/teacher") / str(fold) for fold in range(3)]


@pytest.fixture
def fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """Teachers who know more than they say label the pool, at the temperature that fits them; what the stage reports
    of it."""
    params = small_params()
    params["data"]["root"], params["pseudo_label"]["temperature"] = "raw", "fitted"
    make_project(tmp_path, params)
    make_teachers(tmp_path, params)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for folder in TEACHERS:
        ids, noise = read_predictions(folder / "out_of_fold.parquet")
        write_predictions(
            folder / "out_of_fold.parquet", ids, 0.4 * (2 * noise + 4 * np.eye(len(CATEGORIES))[truth_of(ids)])
        )
    run_stage("pseudo_label")
    return read_json("metrics/pseudo_label.json")["calibration"]["temperature"]


def truth_of(ids: list[str]) -> np.ndarray:
    labeled = open_labeled()
    label_of = dict(zip(labeled.ids.to_pylist(), labeled.label, strict=True))
    return np.array([label_of[one] for one in ids])


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits.astype(np.float64))
    return odds / odds.sum(axis=-1, keepdims=True)


def test_the_stage_fits_the_temperature_on_what_its_teachers_say_out_of_fold(fitted):
    parts = [read_predictions(folder / "out_of_fold.parquet") for folder in TEACHERS]
    truth, logits = (np.concatenate(columns) for columns in zip(*((truth_of(i), z) for i, z in parts), strict=True))
    rows, grid = np.arange(len(truth)), np.geomspace(0.05, 20, 4000)
    losses = [-np.log(softmax(logits / temperature)[rows, truth]).mean() for temperature in grid]
    assert fitted == pytest.approx(grid[np.argmin(losses)], rel=2e-3)
    assert 0.25 < fitted < 0.6


def test_the_pools_labels_are_the_mean_of_its_teachers_at_the_fitted_temperature(fitted):
    videos = open_videos("unlabeled", "small")
    dataset = videos.dataset(np.arange(len(videos)), load(TeacherParams).inputs)
    logits = np.stack([predict_logits(load_model(folder), dataset, 32, "cpu") for folder in TEACHERS])
    who = read_parquet("data/pseudo/labels.parquet")["teacher"].to_numpy()
    asked = (who == MEAN) | (who == np.arange(3)[:, None])  # (T, N)
    expected = (softmax(logits / fitted) * asked[..., None]).sum(0) / np.maximum(asked.sum(0), 1)[:, None]
    assert np.load("data/pseudo/soft.npy") == pytest.approx(expected, rel=1e-3)
