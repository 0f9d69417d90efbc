"""Students of a round that teach the next one, by the real stages: .venv/bin/python -m pytest tests/test_rounds.py"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_project
import yaml

from framefold.data.folds import HOLDOUT
from framefold.data.origins import ORIGIN
from framefold.data.pseudo_labels import MEAN, NOBODY
from framefold.data.videos import open_labeled, open_videos
from framefold.errors import UserError
from framefold.inference.predict import predict_logits
from framefold.inference.predictions import read_predictions, softmax
from framefold.models.registry import load_model
from framefold.params.base import load, read
from framefold.params.models import StudentParams
from framefold.params.validation import validate_all
from framefold.rounds import Round
from framefold.storage import read_json, write_json

FIRST, ARCHS, FOLDS = Round("first"), tiny_project.ARCHS, tiny_project.FOLDS
SWA = FIRST.models / "swa"
LABELS = "data/pseudo/labels.parquet"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The students of a first round, whose ensemble labels for the last. Unlabelled videos 0 to 3 duplicate videos of
    fold 0, fold 1, fold 2 (which has no student) and the holdout."""
    root = tiny_project.copy(tmp_path / "project")
    monkeypatch.chdir(root)
    tiny_project.write_params(
        FOLDS,
        **{
            "earlier_rounds": {"first": "models/teacher"},
            "pseudo_label.teachers": str(SWA),
            "pretrain.epochs": {"single_stream": 1, "dual_stream": 1},
            "pretrain.per_fold": True,
            "finetune.epochs": 2,
        },
    )
    labeled = open_labeled()
    samples = pq.read_table("data/samples/unlabeled.parquet")
    group = samples["group"].to_numpy().copy()
    group[:4] = [labeled.group[labeled.fold == fold][0] for fold in (0, 1, 2, HOLDOUT)]
    pq.write_table(samples.set_column(samples.column_names.index("group"), "group", [group]), samples_file())
    for arch in ARCHS:
        tiny_project.write_students(arch, FOLDS, models=FIRST.models)
        tiny_project.run_stage("average_weights", "--arch", arch, "--round", "first")
    return root


def samples_file() -> str:
    return "data/samples/unlabeled.parquet"


def test_students_label_what_their_fold_never_saw(project):
    tiny_project.run_stage("pseudo_label")
    labels = pq.read_table(LABELS).to_pydict()
    assert labels["teacher"][:4] == [0, 1, NOBODY, NOBODY]
    assert set(labels["teacher"][4:]) == {MEAN}
    assert labels["usable"] == [row != 3 for row in range(len(labels["id"]))]
    videos, inputs = open_videos("unlabeled", "small"), load(StudentParams).inputs
    dataset = videos.dataset(np.arange(len(videos)), inputs)
    probs = np.array(
        [
            [softmax(predict_logits(load_model(SWA / arch / str(fold)), dataset, 16, "cpu")) for arch in ARCHS]
            for fold in FOLDS
        ]
    ).mean(axis=1)  # (folds, N, C), every architecture with the same say
    expected = probs.mean(axis=0)
    expected[0], expected[1], expected[2:4] = probs[0, 0], probs[1, 1], 0
    assert np.allclose(np.load("data/pseudo/soft.npy"), expected, atol=1e-3)
    assert read_json("data/pseudo/teachers.json") == {
        "folder": str(SWA),
        "folds": open_labeled().digest(),
        "leaky": False,
        "n_folds": 3,
        "trained_folds": {"0": [1, 2], "1": [0, 2]},
    }


def test_the_committees_own_score_is_that_of_its_mean_probabilities(project):
    tiny_project.run_stage("pseudo_label")
    report = read_json("metrics/pseudo_label.json")
    labeled = open_labeled()
    label_of = dict(zip(labeled.ids.to_pylist(), labeled.label.tolist(), strict=True))
    hits = []
    for fold in FOLDS:
        parts = [read_predictions(SWA / arch / str(fold) / "validation.parquet") for arch in ARCHS]
        best = np.mean([softmax(logits) for _, logits in parts], axis=0).argmax(1)
        hits += [label_of[video] == one for video, one in zip(parts[0][0], best, strict=True)]
    assert report["teacher_out_of_fold"]["accuracy"] == pytest.approx(np.mean(hits))
    assert report["teacher_out_of_fold"]["n"] == len(hits)
    assert not report["leaky"]


def test_a_student_that_saw_its_fold_is_no_teacher(project, capsys):
    origin = SWA / "dual_stream/1" / ORIGIN
    write_json(origin, read_json(origin) | {"trained_folds": [0, 1, 2]})
    with pytest.raises(SystemExit):
        tiny_project.run_stage("pseudo_label")
    assert "models/rounds/first/swa/1: it was trained on fold 1" in capsys.readouterr().err


def test_a_folder_that_is_none_of_a_rounds_students_loses_nothing(project, capsys):
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["pseudo_label"]["teachers"] = str(FIRST.models)
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    before = sorted(FIRST.models.rglob("*"))
    with pytest.raises(SystemExit):
        tiny_project.run_stage("pseudo_label")
    assert "models/rounds/first is neither models/teacher nor models/rounds/<name>/swa" in capsys.readouterr().err
    assert sorted(FIRST.models.rglob("*")) == before


LABELLING_STUDENTS = [
    (
        ("finetune", "--arch", "single_stream", "--fold", "0", "--round", "first"),
        {"finetune.vision.lr": 1e-3},
        "own towers",
    ),
    (("pseudo_label",), {"pseudo_label.temperature": "fitted", "pretrain.per_fold": False}, "is fitted on predictions"),
]


@pytest.mark.parametrize(("stage", "changes", "told"), LABELLING_STUDENTS, ids=["towers", "temperature"])
def test_what_students_that_label_cannot_have_is_refused(project, capsys, stage, changes, told):
    """By the file as a whole, and by the stage when it has not been looked at."""
    rounds = {"earlier_rounds": {"first": "models/teacher"}, "pseudo_label.teachers": str(SWA)}
    tiny_project.write_params(FOLDS, **rounds)
    validate_all(read())
    tiny_project.write_params(FOLDS, **rounds, **changes)
    with pytest.raises(UserError, match=told):
        validate_all(read())
    with pytest.raises(SystemExit):
        tiny_project.run_stage(*stage)
    error = capsys.readouterr().err
    assert error.startswith("error: params.yaml: ")
    assert told in error
    assert error.count("\n") == 1


def test_nothing_is_chosen_by_the_fold_of_a_student_that_labels_in_the_next_round(project):
    """Checkpoints by fold score and greedy soups would carry its labels into that round."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["finetune"] |= {"epochs": 3, "checkpoints": {"keep": 2, "select": "top"}}
    params["average_weights"] |= {"last": 2, "method": "greedy"}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    tiny_project.run_stage("pseudo_label", "--round", "second", "--teachers", str(SWA))
    tiny_project.run_stage("pretrain", "--arch", "dual_stream", "--round", "second")
    for fold in FOLDS:
        tiny_project.run_stage("finetune", "--arch", "dual_stream", "--fold", str(fold), "--round", "second")
    tiny_project.run_stage("average_weights", "--arch", "dual_stream", "--round", "second")
    own = Round("second").models
    kept = [read_json(own / f"finetune/dual_stream/{fold}/metrics.json")["kept"] for fold in FOLDS]
    folds = read_json(own / "swa/dual_stream/metrics.json")["folds"]
    assert kept == [[1, 2]] * len(FOLDS)
    assert not any("selection" in fold for fold in folds.values())


def test_students_of_an_architecture_that_params_no_longer_name_have_no_say(project):
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    Path("params.yaml").write_text(yaml.safe_dump(params | {"archs": ["single_stream"]}), encoding="utf-8")
    tiny_project.run_stage("pseudo_label")
    videos = open_videos("unlabeled", "small")
    dataset = videos.dataset(np.arange(1), load(StudentParams).inputs)
    own = softmax(predict_logits(load_model(SWA / "single_stream/0"), dataset, 16, "cpu"))
    assert np.allclose(np.load("data/pseudo/soft.npy")[0], own[0], atol=1e-3)
    assert [path.name for path in SWA.iterdir()] == ["single_stream"]


def test_a_round_leaves_what_the_next_one_reads_and_nothing_elsewhere(project):
    """From labels by the students of a round before to the averages of another, each student by its own teacher."""
    own = Round("second")
    before = {path for path in Path().rglob("*") if path.is_file() and not path.is_relative_to("models/rounds")}
    tiny_project.run_stage("pseudo_label", "--round", "second", "--teachers", str(SWA))
    tiny_project.run_stage("pretrain", "--arch", "dual_stream", "--round", "second")
    for fold in FOLDS:
        tiny_project.run_stage("finetune", "--arch", "dual_stream", "--fold", str(fold), "--round", "second")
    tiny_project.run_stage("average_weights", "--arch", "dual_stream", "--round", "second")
    assert sorted(path.name for path in (own.models / "pretrain/dual_stream").iterdir()) == ["0", "1"]
    for fold in FOLDS:
        origin = read_json(own.models / "swa/dual_stream" / str(fold) / ORIGIN)
        others = [other for other in range(3) if other != fold]
        assert origin == {"leaky": False, "folds": open_labeled().digest(), "n_folds": 3, "trained_folds": others}
    after = {path for path in Path().rglob("*") if path.is_file() and not path.is_relative_to("models/rounds")}
    new = {path for path in after - before if path.parts[0] not in (".scratch", "logs")}
    assert {path.parts[:3] for path in new} == {("data", "rounds", "second"), ("metrics", "rounds", "second")}


@pytest.mark.parametrize(
    ("rounds", "teachers", "told"),
    [
        ({}, "models/rounds/first/swa", "pseudo_label.teachers"),
        ({"first": "models/rounds/first/swa"}, "models/teacher", "earlier_rounds.first"),
        ({"b": "models/rounds/a/swa", "a": "models/teacher"}, "models/teacher", "earlier_rounds.b"),
        ({"../up": "models/teacher"}, "models/teacher", "name rounds"),
    ],
)
def test_rounds_that_nobody_can_label_are_refused(rounds, teachers, told):
    params = yaml.safe_load((tiny_project.ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["earlier_rounds"], params["pseudo_label"]["teachers"] = rounds, teachers
    with pytest.raises(UserError, match=told):
        validate_all(params)


def test_rounds_in_a_chain_are_accepted():
    params = yaml.safe_load((tiny_project.ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["earlier_rounds"] = {"first": "models/teacher", "second": "models/rounds/first/swa"}
    params["pseudo_label"]["teachers"] = "models/rounds/second/swa"
    validate_all(params)
