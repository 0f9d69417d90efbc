"""The end of the pipeline on a tiny project, and `framefold predict`: .venv/bin/pytest tests/test_predict.py"""

import csv
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from framefold.data.manifest import write_manifest
from framefold.data.videos import open_labeled
from framefold.errors import UserError
from framefold.inference.blocks import BlockFolder
from framefold.inference.fold_models import check_kept
from framefold.inference.predict_command import run
from framefold.inference.predictions import read_predictions, write_predictions
from framefold.storage import read_json, sha256_of, write_json
from tests import tiny_project

SWA = Path("models/swa/single_stream")
PARTS = {"out_of_fold", "holdout", "test"}
KEYS = {"score", "score_low", "score_high", "lv1_micro", "lv1_macro", "lv2_micro", "lv2_macro", "top1", "top5", "n"}


def read_csv(path: Path) -> list[list[str]]:
    with open(path, newline="") as file:
        return list(csv.reader(file))


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_of(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the finished project as working directory."""
    monkeypatch.chdir(tiny_project.copy(tmp_path / "project"))


# framefold predict ---------------------------------------------------------------------------------------------------


def test_predict_equals_the_pipelines_own_submission(project, tmp_path, monkeypatch):
    """From raw videos with the bundle alone: no params.yaml, no data/, nothing else of the project, manifest gone."""
    own = Path("data/predictions/result.csv").read_text()
    assert len(set(own.split())) > 1
    shutil.move("models/ensemble", tmp_path / "bundle")
    shutil.move("raw", tmp_path / "raw")
    (tmp_path / "raw" / "frames.manifest").unlink()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    shutil.rmtree(tmp_path / "project")
    run(data=tmp_path / "raw", out=tmp_path / "out" / "result.csv", bundle=tmp_path / "bundle")
    assert (tmp_path / "out" / "result.csv").read_text() == own
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result.csv"]


@pytest.mark.parametrize(
    ("reweight", "weights", "how"),
    [("none", "equal", "probs"), ("logit_adjustment", "greedy", "logits"), ("search", "simplex", "logits")],
)
def test_predict_equals_the_submission_whatever_was_fitted(project, reweight, weights, how):
    """Every method ends as weights in the bundle, other than 1 where its cross-fitted gain has it used."""
    settings = {"reweight.method": reweight, "ensemble.weights": weights, "ensemble.blend": how}
    tiny_project.write_params(tiny_project.FOLDS, **settings)
    tiny_project.finish_pipeline(tiny_project.ARCHS)
    report, bundle = read_json("metrics/reweight.json"), read_json("models/ensemble/bundle.json")
    assert all(report[arch]["method"] == reweight for arch in tiny_project.ARCHS)
    for arch in tiny_project.ARCHS:
        assert (set(bundle["class_weights"][arch]) == {1.0}) == (not report[arch]["used"])
    assert bundle["blend_weights"] == report["blend"]["weights"]
    assert bundle["blend"] == how
    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    assert Path("out.csv").read_text() == Path("data/predictions/result.csv").read_text()


def use_given_features() -> None:
    """Turn the data root into the preliminary layout: one archive of float16 features per split, no images."""
    rng = np.random.default_rng(0)
    for split in tiny_project.SIZES:
        Path("raw/zip_feats").mkdir(exist_ok=True)
        with zipfile.ZipFile(f"raw/zip_feats/{split}.zip", "w") as archive:
            for path in sorted(Path("raw/zip_frames", split).rglob("*.zip")):
                buffer = io.BytesIO()
                np.save(buffer, rng.normal(size=(rng.integers(1, 5), 8)).astype(np.float16))
                archive.writestr(f"{path.stem}.npy", buffer.getvalue())
    shutil.rmtree("raw/zip_frames")
    write_manifest("raw")
    shutil.rmtree("models/clip/small")
    write_json("models/clip/small/config.json", {"recipe": None, "preprocess": None, "dim": 8, "weights_sha256": None})
    for split in tiny_project.SIZES:
        tiny_project.run_stage("extract_frames", "--encoder", "small", "--split", split)


def test_predict_takes_features_that_came_with_the_data(project):
    """Layout zip_feats: the bundle has no encoder weights, and the submission is the pipeline's own all the same."""
    tiny_project.write_params([0], archs=["single_stream"])
    use_given_features()
    tiny_project.write_students("single_stream", [0])
    tiny_project.finish_pipeline(["single_stream"])
    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    assert Path("out.csv").read_text() == Path("data/predictions/result.csv").read_text()
    assert len({category for _, category in read_csv(Path("out.csv"))}) > 1


def test_predict_depends_on_every_part_of_the_bundle(project):
    """Planted defects: another encoder, other class weights, other members. Equality above would catch each."""
    own = Path("data/predictions/result.csv").read_text()
    settings = read_json("models/ensemble/bundle.json")
    weights = {arch: [1.0, 1.0, 1.0, 50.0] for arch in settings["archs"]}
    Path("models/ensemble/bundle.json").write_text(json.dumps(settings | {"class_weights": weights}))
    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    assert Path("out.csv").read_text() != own

    Path("models/ensemble/bundle.json").write_text(json.dumps(settings | {"max_tokens": 1}))
    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    assert Path("out.csv").read_text() != own


def test_bad_videos_are_labelled_and_change_no_others(project, capsys):
    """Truncated zip, no zip, wrong types, broken text; a repeated id and one that is none are left out."""
    before = dict(read_csv(Path("data/predictions/result.csv")))
    annotations = Path("raw/annotations/test.json")
    records = json.loads(annotations.read_text(encoding="utf-8"))
    truncated = Path("raw/zip_frames/test") / records[0]["id"][-3:] / f"{records[0]['id']}.zip"
    truncated.write_bytes(truncated.read_bytes()[:100])
    broken = [{"id": "1001", "title": 5, "ocr": [{"time": 0, "text": "篮球"}]}, {"id": "1002", "title": "\ud800"}]
    strangers = [{"id": 17}, {"id": "x"}, "nonsense", records[3]]
    annotations.write_text(json.dumps([*broken[:1], *records, *strangers, *broken[1:]]), encoding="utf-8")

    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    rows = read_csv(Path("out.csv"))
    assert [video for video, _ in rows] == ["1001", *(record["id"] for record in records), "1002"]
    after, touched = dict(rows), {records[0]["id"]}
    assert {video: after[video] for video in before.keys() - touched} == {
        video: before[video] for video in before.keys() - touched
    }
    shown = capsys.readouterr().err
    assert "2 records have broken fields or no frames on disk" in shown
    assert "4 records have no id of their own" in shown


def test_a_bundle_that_is_none_is_one_line(project):
    with pytest.raises(UserError, match=r"bundle\.json"):
        run(Path("raw"), Path("out.csv"), Path("models/clip"))
    assert not Path("out.csv").exists()


def test_data_without_test_frames_is_one_line(project):
    shutil.rmtree("raw/zip_frames/test")
    with pytest.raises(UserError, match="zip_frames/test"):
        run(Path("raw"), Path("out.csv"), Path("models/ensemble"))


# average_weights -----------------------------------------------------------------------------------------------------


def test_swa_is_the_mean_of_the_last_checkpoints_and_never_of_an_earlier_average(project):
    folder = Path("models/finetune/single_stream/0")
    save_file({}, folder / "model.safetensors")  # looks like an average; must not count
    tiny_project.run_stage("average_weights", "--arch", "single_stream")
    first = sha256_of(SWA / "0/model.safetensors")
    tiny_project.run_stage("average_weights", "--arch", "single_stream")
    parts = [load_file(folder / f"epoch-{epoch}.safetensors") for epoch in range(2)]
    averaged = load_file(SWA / "0/model.safetensors")
    assert averaged.keys() == parts[0].keys()
    assert all(np.allclose(averaged[name], (parts[0][name] + parts[1][name]) / 2, atol=1e-7) for name in averaged)
    assert sha256_of(SWA / "0/model.safetensors") == first


@pytest.mark.parametrize("last", [1, 2])
def test_only_the_last_checkpoints_count(project, last):
    tiny_project.write_params([0], **{"average_weights.last": last})
    tiny_project.run_stage("average_weights", "--arch", "single_stream")
    final = load_file("models/finetune/single_stream/0/epoch-1.safetensors")
    averaged = load_file(SWA / "0/model.safetensors")
    assert all(np.array_equal(averaged[name], final[name]) for name in final) == (last == 1)


def test_more_checkpoints_than_are_kept_are_refused(project):
    """`dvc repro` alone does not look at params.yaml as a whole: the stage must not average fewer in silence."""
    report = Path("models/finetune/single_stream/0/metrics.json")
    report.write_text(json.dumps(read_json(report) | {"epochs": [{}] * 4}), encoding="utf-8")
    tiny_project.write_params([0], **{"average_weights.last": 3})
    with pytest.raises(UserError, match=r"average_weights.last is 3, but .* keeps 2"):
        check_kept(report.parent, 3)
    with pytest.raises(SystemExit, match="1"):
        tiny_project.run_stage("average_weights", "--arch", "single_stream")


def test_the_latest_of_the_best_checkpoints_are_not_averaged(project):
    """They are in no order of time: fewer than all of them would be the last ones after all."""
    report = Path("models/finetune/single_stream/0/metrics.json")
    report.write_text(json.dumps(read_json(report) | {"selection": {}}), encoding="utf-8")
    check_kept(report.parent, 2)
    check_kept(report.parent, 3)  # of two epochs there are no more
    with pytest.raises(UserError, match="1 of the 2 best checkpoints"):
        check_kept(report.parent, 1)


def test_a_removed_fold_leaves_no_trace(project):
    """Params name fold 1 alone, fold 0 still lies there: the result is that of a project that never had it."""
    archs = ["single_stream"]
    tiny_project.write_params([1], archs=archs)
    tiny_project.finish_pipeline(archs)
    with_leftovers = digests(Path("models/swa")) | digests(Path("models/ensemble")) | digests(Path("metrics"))
    assert not Path("models/finetune/single_stream/0").exists()
    for folder in ("models/finetune", "models/swa", "models/reweight", "models/ensemble", "metrics"):
        shutil.rmtree(folder)
    shutil.copytree(tiny_project.finished() / "metrics", "metrics")
    tiny_project.write_students("single_stream", [1])
    tiny_project.finish_pipeline(archs)
    assert digests(Path("models/swa")) | digests(Path("models/ensemble")) | digests(Path("metrics")) == with_leftovers


def test_a_killed_stage_goes_on_behind_what_it_finished(project, monkeypatch):
    """Interrupted in the second fold: the next start predicts only what is missing, and ends with the same bytes."""
    whole = digests(SWA)
    shutil.rmtree(SWA)
    written: list[str] = []
    write = BlockFolder.write

    def dies(self, number, block):
        if len(written) == 5:  # a fold has four files of one block each
            raise KeyboardInterrupt
        written.append(f"{self.folder} {number}")
        write(self, number, block)

    monkeypatch.setattr(BlockFolder, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        tiny_project.run_stage("average_weights", "--arch", "single_stream")
    assert not SWA.exists()
    written.append("not a block: the next one does not die")
    tiny_project.run_stage("average_weights", "--arch", "single_stream")
    assert digests(SWA) == whole
    assert len(set(written)) == len(written) == 9  # nothing was done twice
    assert not Path(".scratch/average_weights@single_stream").exists()


# ensemble ------------------------------------------------------------------------------------------------------------


def scramble(arch: str, names: list[str]) -> None:
    for name in names:
        for path in Path("models/swa", arch).rglob(f"{name}.parquet"):
            ids, logits = read_predictions(path)
            write_predictions(path, ids, np.random.default_rng(0).normal(size=logits.shape))


def let_be_right(arch: str) -> None:
    """Out of fold, by a hair: whatever is blended with it makes it worse."""
    labeled = open_labeled()
    truth = dict(zip(labeled.ids.to_pylist(), labeled.label, strict=True))
    path = Path("models/swa", arch, "out_of_fold.parquet")
    ids, logits = read_predictions(path)
    write_predictions(path, ids, 0.01 * np.eye(logits.shape[1])[[truth[video] for video in ids]])


def tuned() -> tuple[str, str]:
    for arch in tiny_project.ARCHS:
        tiny_project.run_stage("reweight", "--arch", arch)
    tiny_project.run_stage("ensemble")
    return sha256_of("models/ensemble/bundle.json"), read_json("metrics/comparisons.json")["best_fold_is"]


def test_nothing_is_tuned_on_holdout_or_test(project):
    """Class weights, blend weights and the choice of the best fold stay when holdout and test predictions become noise.

    They follow the out-of-fold predictions, to whichever architecture is right there, so the check would see a leak."""
    tiny_project.write_params(
        tiny_project.FOLDS, **{"ensemble.weights": "simplex", "ensemble.min_gain": None, "reweight.min_gain": None}
    )
    before = tuned()
    scramble("single_stream", ["holdout", "test"])
    assert tuned() == before
    found = []
    for right, wrong in (tiny_project.ARCHS, tiny_project.ARCHS[::-1]):
        scramble(wrong, ["out_of_fold"])
        let_be_right(right)
        found.append(tuned())
    assert found[0] != found[1]


def test_best_fold_is_the_best_on_validation_even_when_another_is_best_on_test(project):
    chosen = read_json("metrics/comparisons.json")["best_fold_is"]
    folds = {
        f"{arch}/{fold}": scores["swa"]
        for arch in tiny_project.ARCHS
        for fold, scores in read_json(f"models/swa/{arch}/metrics.json")["folds"].items()
    }
    assert folds[chosen] == max(folds.values())
    best = read_json("metrics/metrics.json")["best_fold"]
    assert best["out_of_fold"]["score"] == pytest.approx(folds[chosen])


def test_metrics_hold_every_entry_with_its_interval(project):
    metrics = read_json("metrics/metrics.json")
    assert metrics.keys() == {"ensemble", "best_fold", *tiny_project.ARCHS}
    assert all(set(parts) == PARTS for parts in metrics.values())
    assert all(set(entry) == KEYS for parts in metrics.values() for entry in parts.values())
    assert metrics["ensemble"]["test"]["n"] == tiny_project.SIZES["test"]


def test_partial_truth_is_scored_on_what_it_names(project):
    """Ids that are no test videos, test videos without truth, a category that no model knows."""
    path = Path("raw/annotations/test_truth.csv")
    known = path.read_text().split()[:10]
    path.write_text("\n".join([*known[:9], known[9].split(",")[0] + ",0999", "424242,0101"]) + "\n")
    tiny_project.run_stage("ensemble")
    assert read_json("metrics/metrics.json")["ensemble"]["test"]["n"] == 10


def test_without_truth_there_are_no_test_scores(project):
    Path("raw/annotations/test_truth.csv").unlink()
    tiny_project.run_stage("ensemble")
    assert set(read_json("metrics/metrics.json")["ensemble"]) == {"out_of_fold", "holdout"}


def test_alive_checks_can_fail(project):
    """A dead EMA, masked tokens at the unigram guess, pseudo-labels below their teachers: each shows as not ok."""
    names = ("ema_against_raw/single_stream", "masked_tokens/single_stream", "pseudo_labels")
    checks = read_json("metrics/alive.json")
    assert [checks[name]["ok"] for name in names] == [True, True, True]
    metrics = read_json(SWA / "metrics.json")
    for fold in metrics["folds"].values():
        fold["finetune"] = {"ema": 0.1, "raw": 0.4}
    (SWA / "metrics.json").write_text(json.dumps(metrics))
    Path("models/pretrain/single_stream/all/metrics.json").write_text(
        '{"mlm_accuracy": 0.11, "mlm_by_guess": 0.1, "mlm_asked": 1000}'
    )
    Path("metrics/pseudo_label.json").write_text(
        '{"leaky": false, "teacher_out_of_fold": {"accuracy": 0.5}, "pool": {"accuracy": 0.4}}'
    )
    tiny_project.run_stage("ensemble")
    checks = read_json("metrics/alive.json")
    assert [checks[name]["ok"] for name in names] == [False, False, False]
    assert checks["ema_against_raw/dual_stream"]["ok"]
