"""Students of all labelled videos for the bundle: .venv/bin/python -m pytest tests/test_full_data.py"""

import contextlib
import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from stores import SIZES, make_pretrained, make_project, small_params, write_origins

from framefold.data.folds import HOLDOUT, REFIT
from framefold.data.pseudo_labels import ORIGINS
from framefold.data.videos import open_labeled, open_videos
from framefold.inference.blocks import BlockFolder
from framefold.inference.ensembling import blend, reweighted_probs
from framefold.inference.predict_command import run
from framefold.inference.predictions import read_predictions, write_predictions
from framefold.params.base import load
from framefold.params.models import StudentParams
from framefold.rounds import Round
from framefold.storage import read_json, sha256_of, write_json
from framefold.training.classifiers import open_all
from stages import finetune as finetune_stage
from stages import refit
from tests import tiny_project

ARCHS = tiny_project.ARCHS


@pytest.fixture(scope="module")
def with_refits(tmp_path_factory) -> Path:
    """A copy of the finished project, then finished once more with a refit of every architecture. For reading."""
    root = tiny_project.copy(tmp_path_factory.mktemp("full") / "project")
    with contextlib.chdir(root):
        tiny_project.write_params(tiny_project.FOLDS, full_data=[REFIT])
        for arch in ARCHS:
            tiny_project.write_students(arch, [REFIT])
        tiny_project.finish_pipeline(ARCHS)
    return root


@pytest.fixture
def project(with_refits, tmp_path, monkeypatch):
    """A copy of it as working directory."""
    monkeypatch.chdir(shutil.copytree(with_refits, tmp_path / "project"))


def plain() -> Path:
    return tiny_project.finished()


def test_no_score_and_nothing_tuned_depends_on_the_refit(project):
    """With and without it: the same scores out of fold, on the holdout and on test, the same weights."""
    before, after = (read_json(root / "metrics/metrics.json") for root in (plain(), Path()))
    entry = after.pop("full_data")
    assert after == before
    assert set(entry) == {"test", "estimate"}
    for name in ("reweight", "contributions", "selection"):
        assert read_json(f"metrics/{name}.json") == read_json(plain() / f"metrics/{name}.json")
    kept, now = (read_json(root / "models/ensemble/bundle.json") for root in (plain(), Path()))
    assert now == kept | {"folds": [REFIT]}
    for arch in ARCHS:
        for name in ("out_of_fold", "holdout", "test"):
            path = Path("models/swa", arch, f"{name}.parquet")
            assert sha256_of(path) == sha256_of(plain() / path)


def test_a_refit_is_asked_for_test_videos_alone(project):
    files = {path.name for path in Path("models/swa/single_stream/all").iterdir()}
    assert files == {"model.safetensors", "config.json", "curves.csv", "origin.json", "test.parquet"}


def test_other_holdout_logits_change_the_score_that_the_refit_must_not(project):
    """The comparison above can fail."""
    ids, _ = read_predictions("models/swa/single_stream/holdout.parquet")
    labels = dict(zip(open_labeled().ids.to_pylist(), open_labeled().label, strict=True))
    write_predictions("models/swa/single_stream/holdout.parquet", ids, 9 * np.eye(4)[[labels[video] for video in ids]])
    tiny_project.run_stage("ensemble")
    now, before = (read_json(root / "metrics/metrics.json")["ensemble"]["holdout"] for root in (Path(), plain()))
    assert now["score"] > before["score"]


def test_the_submission_and_the_bundle_are_the_refits(project):
    """result.csv is the blend of both refits' test logits, and `framefold predict` says the same from raw videos."""
    bundle = read_json("models/ensemble/bundle.json")
    members = [read_predictions(f"models/swa/{arch}/all/test.parquet") for arch in ARCHS]
    probs = [
        reweighted_probs(logits, np.array(bundle["class_weights"][arch]))
        for arch, (_, logits) in zip(ARCHS, members, strict=True)
    ]
    labels = blend(probs, bundle["blend_weights"], bundle["blend"]).argmax(axis=1)
    expected = {video: bundle["categories"][label] for video, label in zip(members[0][0], labels, strict=True)}
    result = Path("data/predictions/result.csv")
    with open(result, newline="") as file:
        assert dict(csv.reader(file)) == expected
    assert result.read_text() != (plain() / result).read_text()
    assert sorted(path.parent.name for path in Path("models/ensemble/members").rglob("config.json")) == ["all", "all"]
    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    assert Path("out.csv").read_text() == result.read_text()


def test_a_refit_that_disagrees_with_the_folds_shows_in_the_alive_checks(project):
    """Its labels have no truth to be held against; a broken one is told by the models of the folds."""
    check = read_json("metrics/alive.json")["full_data_agrees"]
    assert 0 <= check["value"] <= 1
    for arch in ARCHS:  # refits that say what the folds say
        shutil.copy(f"models/swa/{arch}/test.parquet", f"models/swa/{arch}/all/test.parquet")
    tiny_project.run_stage("ensemble")
    assert read_json("metrics/alive.json")["full_data_agrees"] == check | {"value": 1.0, "ok": True}
    assert read_json("metrics/comparisons.json")["full_data_minus_ensemble"]["test"]["difference"] == 0


def test_turning_it_off_leaves_no_trace(project):
    tiny_project.write_params(tiny_project.FOLDS)
    tiny_project.finish_pipeline(ARCHS)
    for folder in ("models/swa", "models/ensemble", "metrics"):
        assert contents(Path(folder)) == contents(plain() / folder)
    assert not Path("models/finetune/single_stream/all").exists()


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_killed_averaging_goes_on_with_the_refit(project, monkeypatch):
    """Interrupted before the refit's block, the last one: only that is predicted afterwards, to the same bytes."""
    target, written = Path("models/swa/single_stream"), []
    whole, write = contents(target), BlockFolder.write
    shutil.rmtree(target)

    def dies(self, number, block):
        if len(written) == 8:  # two folds of four files
            raise KeyboardInterrupt
        written.append(self.folder)
        write(self, number, block)

    monkeypatch.setattr(BlockFolder, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny_project.run_stage("average_weights", "--arch", "single_stream")
    written.clear()
    tiny_project.run_stage("average_weights", "--arch", "single_stream")
    assert [path.parent.name for path in written] == [REFIT]
    assert contents(target) == whole


# The stage itself ----------------------------------------------------------------------------------------------------


def pretrained_project(root: Path, variants: list[str], **changes: object) -> None:
    """Stores and pretrained students with random weights, one for each variant."""
    params = small_params()
    params["finetune"] |= {"epochs": 3}
    for key, value in changes.items():
        params[key] |= value
    make_project(root, params)
    write_origins(root)
    make_pretrained(root, params, {variant: number for number, variant in enumerate(variants)})


def run_refit(monkeypatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["refit", "--arch", "single_stream"])
    refit.main()
    return Path("models/finetune/single_stream/all")


def test_the_refit_trains_on_every_labelled_video_and_keeps_the_last_checkpoints(tmp_path, monkeypatch):
    """Also where students keep their best: no fold says which those are."""
    choice = {"checkpoints": {"keep": 2, "select": "top"}}
    pretrained_project(tmp_path, ["all"], finetune=choice)
    monkeypatch.chdir(tmp_path)
    folder = run_refit(monkeypatch)
    report = read_json(folder / "metrics.json")
    assert report["training_videos"] == SIZES["labeled"]
    assert report["validation_videos"] == 0
    assert report["kept"] == [1, 2]
    assert {path.name for path in folder.glob("*.safetensors")} == {"epoch-1.safetensors", "epoch-2.safetensors"}


def test_all_labelled_videos_are_the_holdout_too(tmp_path, monkeypatch):
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    videos = open_videos("labeled", "small")
    labeled = open_labeled(videos)
    data = open_all(videos, labeled, load(StudentParams).inputs, 16)
    assert (labeled.fold[data.training.rows] == HOLDOUT).sum() == (labeled.fold == HOLDOUT).sum() > 0
    assert np.array_equal(data.training.labels, labeled.label)
    assert len(data.validation) == 0


def test_it_starts_from_the_first_teachers_student_where_there_is_one_for_each(tmp_path, monkeypatch):
    """pretrain.per_fold: nothing is pretrained on the labels of all teachers."""
    pretrained_project(tmp_path, ["2", "1"], pretrain={"per_fold": True}, finetune={"epochs": 1})
    monkeypatch.chdir(tmp_path)
    learned = {"1": [0, 2], "2": [0, 1]}
    origins = {"folder": "models/teacher", "leaky": False, "n_folds": 3, "trained_folds": learned}
    origins["folds"] = open_labeled().digest()
    write_json(Path("data/pseudo") / ORIGINS, origins)
    assert finetune_stage.labels_by(REFIT, Round(None)) == 1
    assert finetune_stage.labels_by(5, Round(None)) == 2
    start = load_file("models/pretrain/single_stream/1/model.safetensors")
    trained = load_file(run_refit(monkeypatch) / "epoch-0.safetensors")
    far = load_file("models/pretrain/single_stream/2/model.safetensors")
    name = max(start, key=lambda key: start[key].size)
    assert np.abs(trained[name] - start[name]).mean() < np.abs(trained[name] - far[name]).mean()


def test_a_fold_whose_best_epochs_are_kept_tells_how_optimistic_that_is(tmp_path, monkeypatch):
    choice = {"checkpoints": {"keep": 1, "select": "top"}, "epochs": 2}
    pretrained_project(tmp_path, ["all"], finetune=choice)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["finetune", "--arch", "single_stream", "--fold", "0"])
    finetune_stage.main()
    report = read_json("models/finetune/single_stream/0/metrics.json")
    assert all(len(epoch["ema_halves"]) == 2 for epoch in report["epochs"])
    assert report["selection"]["in_sample_gain"] >= report["selection"]["cross_fitted_gain"]
