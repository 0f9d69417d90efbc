"""The committed metrics come from dvc.lock's run of the demo and clear the bars.

pytest tests/test_committed_results.py  (skipped where params.yaml names other data)
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
LOCKED = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
pytestmark = pytest.mark.skipif(PARAMS["data"]["generated"] != ["demo"], reason="params.yaml names other data")
BAR = 0.08  # of official score: how far text alone and frames alone fall short of both, in the data


def read(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def locked_outs() -> dict[str, str]:
    """md5 of every metric and plot, as dvc.lock has it."""
    outs = (out for stage in LOCKED.values() for out in stage.get("outs", []))
    return {out["path"]: out["md5"] for out in outs if out["path"].startswith("metrics/")}


@pytest.mark.parametrize("path", sorted(locked_outs()))
def test_metrics_are_those_of_the_locked_run(path: str):
    assert hashlib.md5((ROOT / path).read_bytes()).hexdigest() == locked_outs()[path]


def test_the_locked_run_is_the_demo_with_the_committed_params():
    assert LOCKED["demo_data@demo"]["params"]["params.yaml"]["demo"] == PARAMS["demo"]
    for arch in PARAMS["archs"]:
        for fold in PARAMS["folds"]:
            assert LOCKED[f"finetune@{arch}-{fold}"]["params"]["params.yaml"]["finetune"] == PARAMS["finetune"]


@pytest.mark.parametrize("stage", sorted(LOCKED))
def test_the_locked_stage_ran_with_the_committed_params(stage: str):
    for key, value in LOCKED[stage].get("params", {}).get("params.yaml", {}).items():
        assert value == value_at(key), key


@pytest.mark.parametrize("stage", sorted(LOCKED))
def test_the_locked_stage_ran_with_the_committed_code(stage: str):
    code = [dep for dep in LOCKED[stage]["deps"] if dep["path"].endswith(".py")]
    assert code
    for dep in code:
        assert hashlib.md5((ROOT / dep["path"]).read_bytes()).hexdigest() == dep["md5"], dep["path"]


def value_at(key: str) -> Any:
    """The value of params.yaml at a dotted key."""
    value: Any = PARAMS
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("split", ["out_of_fold", "test"])
@pytest.mark.parametrize("alone", ["text", "frames"])
def test_one_modality_alone_falls_short_in_the_linear_probe(alone: str, split: str):
    reference = read("reference")
    assert reference["both"][split]["score"] - reference[alone][split]["score"] >= BAR


def test_the_right_class_is_often_among_five_and_not_first():
    both = read("reference")["both"]["test"]
    assert both["top5"] - both["top1"] >= 0.15


@pytest.mark.parametrize("alone", ["text", "frames"])
def test_the_ensemble_is_ten_points_above_the_probe_on_one_modality(alone: str):
    assert read("metrics")["ensemble"]["test"]["score"] - read("reference")[alone]["test"]["score"] >= 0.10


def test_the_ensemble_is_above_the_probe_on_both():
    assert read("metrics")["ensemble"]["test"]["score"] > read("reference")["both"]["test"]["score"]


def test_the_ensemble_is_above_the_best_single_fold_model():
    metrics = read("metrics")
    assert metrics["ensemble"]["test"]["score"] > metrics["best_fold"]["test"]["score"]


def test_the_ensemble_is_below_the_ceiling():
    """A score above Bayes' rule with the true model would be a leak."""
    assert read("metrics")["ensemble"]["test"]["score"] < read("comparisons")["oracle"]["both"]["score"]


@pytest.mark.parametrize("split", ["out_of_fold", "holdout", "test"])
def test_every_score_stands_within_its_interval(split: str):
    for entry in (model[split] for model in read("metrics").values() if split in model):  # full_data: test alone
        assert entry["score_low"] <= entry["score"] <= entry["score_high"]


@pytest.mark.parametrize("check", sorted(read("alive")))
def test_every_method_does_something(check: str):
    assert read("alive")[check]["ok"], read("alive")[check]
