"""A study of the real pipeline at smoke size: .venv/bin/python -m pytest -m slow tests/test_study_real.py"""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project, SmokeRun

from framefold.storage import read_json

pytestmark = pytest.mark.slow

STUDY: dict[str, Any] = {
    "dataset": "smoke",
    "profile": None,
    "overrides": {},
    "seeds": {"ladder": [0], "without": [0], "added": [0]},
    "bootstrap": {"resamples": 100, "seed": 0},
    "ladder": [],
    "without": [
        {
            "name": "bare",
            "what": "one model from scratch",
            "overrides": {"archs": ["single_stream"], "folds": [0], "pretrain.epochs": 0, "finetune.ema_decay": 0},
        },
        {"name": "no_smoothing", "what": "no label smoothing", "overrides": {"finetune.label_smoothing": 0}},
    ],
    "added": [],
}


@pytest.fixture(scope="module")
def studied(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished smoke run, then its study, which may take from the cache what the run has left there."""
    project = smoke_run.project.copy(tmp_path_factory.mktemp("study") / "project")
    (project.path / "studies/smoke.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    project.commit("study")
    project.framefold("ablate", "smoke", "--jobs", "2", "--cache", ".dvc/cache", "--commit")
    return project


def rows(project: Project) -> list[dict[str, str]]:
    with open(project.path / "metrics/ablation.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def log(project: Project, run: str) -> str:
    return (project.path / f".ablation/smoke/logs/study/{run}.log").read_text(encoding="utf-8")


def test_every_arm_has_its_scores_and_the_default_has_those_of_the_run(studied: Project):
    splits = ("out_of_fold", "holdout", "test")
    assert [(row["arm"], row["split"]) for row in rows(studied)] == [
        (arm, split) for arm in ("default", "bare", "no_smoothing") for split in splits
    ]
    ensemble = read_json(studied.path / "metrics/metrics.json")["ensemble"]
    own = {row["split"]: float(row["score"]) for row in rows(studied) if row["arm"] == "default"}
    assert own == pytest.approx({split: ensemble[split]["score"] for split in splits}, abs=1e-6)


def test_an_arm_runs_only_the_stages_that_it_changes(studied: Project):
    assert studied.report(log(studied, "default-0")).kinds == {"demo_data"}  # which is in no cache
    assert studied.report(log(studied, "no_smoothing-0")).kinds == {
        "finetune",
        "average_weights",
        "reweight",
        "ensemble",
    }


def test_a_model_without_pretraining_goes_through_the_whole_pipeline(studied: Project):
    ran = studied.report(log(studied, "bare-0")).ran
    assert {name for name in ran if name.startswith(("pretrain", "finetune"))} == {
        "pretrain@single_stream",
        "finetune@single_stream-0",
    }


def test_the_project_itself_is_as_it_was_but_for_the_results(studied: Project, smoke_run: SmokeRun):
    assert studied.lock == smoke_run.project.lock
    assert studied.run("git", "status", "--porcelain") == ""
    assert studied.run("git", "log", "--format=%s", "-2").splitlines() == [
        "Ablation: smoke, no_smoothing, seed 0",
        "Ablation: smoke, bare, seed 0",
    ]


def test_nothing_is_left_to_run_also_elsewhere(studied: Project, tmp_path: Path):
    assert "nothing left to run" in studied.framefold("ablate", "smoke")
    elsewhere = Project(tmp_path / "clone", studied.environment)
    studied.run("git", "clone", "--quiet", str(studied.path), str(elsewhere.path))
    assert "nothing left to run" in elsewhere.framefold("ablate", "smoke")


def test_the_report_stands_in_the_docs(studied: Project):
    studied.framefold("ablate", "smoke", "--report")
    text = (studied.path / "docs/experiments.md").read_text(encoding="utf-8")
    assert "| no_smoothing | no label smoothing | 1 |" in text
    assert (studied.path / "docs/ablation-smoke.svg").is_file()
