"""What a study consists of: .venv/bin/python -m pytest tests/test_study_arms.py"""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_study import ROOT, STUDY, SmallStudy, make

from framefold.errors import UserError
from framefold.params.base import value_at
from framefold.study.arms import Arm, expand, read_study
from framefold.study.digests import OUTCOME, code_digest, meaning, params_digest
from framefold.study.worth import sides

STUDIES = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))
ARCHS = ("single_stream", "dual_stream")
RECIPE = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def study(tmp_path: Path) -> SmallStudy:
    return make(tmp_path)


def arms_of(study: SmallStudy, *overrides: str) -> dict[str, Arm]:
    return {arm.name: arm for arm in expand(read_study("tiny", study.root), overrides, study.root)}


def differing(first: Any, second: Any, prefix: str = "") -> set[str]:
    """Dotted keys whose values differ."""
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return set() if first == second else {prefix.rstrip(".")}
    keys = first.keys() | second.keys()
    return {key for name in keys for key in differing(first.get(name), second.get(name), f"{prefix}{name}.")}


def test_the_default_is_the_recipe_with_the_overrides_of_the_study(study):
    assert differing(arms_of(study)["default"].params, RECIPE) == {"finetune.epochs"}


def test_a_rung_is_the_one_before_with_its_own_change_alone(study):
    arms = arms_of(study)
    ladder = [arm for arm in arms.values() if arm.kind == "ladder"]
    changes = [differing(low.params, high.params) for low, high in itertools.pairwise(ladder)]
    assert changes == [{"finetune.label_smoothing", "folds"}, {"average_weights.last"}]
    assert differing(ladder[0].params, arms["default"].params) == set().union(*changes)
    assert [arm.rival for arm in ladder] == [None, "bare", "smoothing"]


def test_an_arm_without_or_added_differs_from_the_recipe_by_its_own_change_alone(study):
    arms = arms_of(study)
    for name, key, value in (
        ("no_smoothing", "finetune.label_smoothing", 0),
        ("pgd", "finetune.adversarial.method", "pgd"),
    ):
        assert differing(arms[name].params, arms["default"].params) == {key}
        assert value_at(arms[name].params, key, "") == value
        assert arms[name].rival == "default"


def test_an_arm_may_name_its_rival(study):
    other = {"name": "both", "what": "x", "overrides": {"finetune.adversarial.steps": 2}, "rival": "pgd"}
    study.write_study(added=[*STUDY["added"], other])
    arms = arms_of(study)
    assert (arms["both"].rival, arms["pgd"].rival) == ("pgd", "default")
    assert sides(arms["both"]) == ("both", "pgd")


def test_the_recipe_is_run_with_every_seed_that_an_arm_has(study):
    study.write_study(seeds={"ladder": [0, 5], "without": [0, 1], "added": [9]})
    arms = arms_of(study)
    assert arms["default"].seeds == (0, 5, 1, 9)
    assert (arms["bare"].seeds, arms["pgd"].seeds) == ((0, 5), (9,))


def test_an_arm_may_have_seeds_of_its_own_and_has_those_of_the_arms_held_against_it(study):
    other = {"name": "both", "what": "x", "overrides": {"finetune.adversarial.steps": 2}, "rival": "pgd", "seeds": [7]}
    study.write_study(added=[*STUDY["added"], other])
    arms = arms_of(study)
    assert (arms["both"].seeds, arms["pgd"].seeds, arms["default"].seeds) == ((7,), (0, 7), (0, 1, 7))
    assert arms["no_smoothing"].seeds == (0, 1)


def test_what_the_command_line_says_holds_for_every_arm(study):
    arms = arms_of(study, "finetune.lr.head=3e-4", "average_weights.last=1")
    assert {value_at(arm.params, "finetune.lr.head", "") for arm in arms.values()} == {0.0003}
    assert arms["averaging"].params["average_weights"]["last"] == 1


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_a_committed_study_can_be_run(name):
    """`expand` validates each; a study that names a method twice, or a setting that is gone, fails here."""
    arms = expand(read_study(name, ROOT), [], ROOT)
    assert {"ladder", "default", "without", "added"} == {arm.kind for arm in arms}


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_of_a_committed_study_changes_something(name):
    arms = {arm.name: arm for arm in expand(read_study(name, ROOT), [], ROOT)}
    assert [arm.name for arm in arms.values() if arm.rival and arm.params == arms[arm.rival].params] == []


@pytest.mark.parametrize("name", STUDIES)
def test_a_committed_ladder_ends_with_the_recipe(name):
    arms = expand(read_study(name, ROOT), [], ROOT)
    last = [arm for arm in arms if arm.kind == "ladder"][-1]
    assert differing(last.params, next(arm for arm in arms if arm.name == "default").params) == set()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"without": [{"name": "a", "what": "x", "overrides": {"finetune.epoch": 1}}]}, "finetune.epochs"),
        ({"without": [{"name": "a", "what": "x", "overrides": {"finetune.epochs": "many"}}]}, "arm a: finetune.epochs"),
        ({"without": [{"name": "a", "what": "x", "overrides": {"average_weights.last": 9}}]}, "checkpoints.keep"),
        ({"without": [{"name": "a", "what": "x"}]}, "changes nothing"),
        ({"without": [{"name": "../a", "what": "x", "overrides": {"folds": [0]}}]}, "pattern"),
        ({"without": [{"name": "pgd", "what": "x", "overrides": {"folds": [0]}}]}, "several arms are called pgd"),
        ({"without": [{"name": "default", "what": "x", "overrides": {"folds": [0]}}]}, "called default"),
        ({"ladder": [{"name": "a", "what": "x", "restore": ["finetune.nothing"]}]}, "finetune.nothing is missing"),
        ({"optimism": ["bare", "nobody"]}, "optimism: no arms nobody"),
        ({"verdicts": ["train"]}, "verdicts"),
        ({"added": [{"name": "a", "what": "x", "overrides": {"folds": [0]}, "seeds": []}]}, "seeds"),
        (
            {"without": [{"name": "a", "what": "x", "overrides": {"folds": [0]}, "rival": "nobody"}]},
            "rival: no arms nobody",
        ),
        ({"seed": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(study, changes, told):
    study.write_study(**changes)
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        arms_of(study)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", STUDIES)
def test_out_of_fold_judges_no_arm_whose_students_learned_more_of_its_labels_than_the_rival_s(name):
    """By the teachers' labels of a pretraining that is not `per_fold`, or by a choice of checkpoints."""

    def learned(arm: Arm) -> tuple[bool, bool]:
        pretrain, finetune = arm.params["pretrain"], arm.params["finetune"]
        distilled = any(pretrain["weights"][arch]["distillation"] and pretrain["epochs"][arch] for arch in ARCHS)
        chosen = finetune["checkpoints"]["select"] == "top" or arm.params["average_weights"]["method"] == "greedy"
        return distilled and not pretrain["per_fold"], chosen

    arms = {arm.name: arm for arm in expand(read_study(name, ROOT), [], ROOT)}
    for arm in arms.values():
        if arm.rival and any(a and not b for a, b in zip(learned(arm), learned(arms[arm.rival]), strict=True)):
            assert "labeled" not in arm.verdicts, arm.name


EXTENSION = {"extends": "tiny", "dataset": "wide", "leave_out": ["no_smoothing"]}


def extending(study: SmallStudy, **changes: Any) -> dict[str, Arm]:
    """Arms of a study that extends `tiny`."""
    content = yaml.safe_dump(EXTENSION | changes)
    (study.root / "studies" / "wide.yaml").write_text(content, encoding="utf-8")
    return {arm.name: arm for arm in expand(read_study("wide", study.root), [], study.root)}


def test_an_extending_study_has_the_arms_of_the_other_but_those_that_it_leaves_out(study):
    others, own = arms_of(study), extending(study)
    assert own.keys() == others.keys() - {"no_smoothing"}
    assert all(own[name].params == others[name].params for name in own)
    assert read_study("wide", study.root).dataset == "wide"


def test_an_extending_study_changes_arms_key_by_key(study):
    change = {"pgd": {"what": "one step", "overrides": {"finetune.adversarial.steps": 1}}}
    own, other = extending(study, changes=change)["pgd"], arms_of(study)["pgd"]
    assert differing(own.params, other.params) == {"finetune.adversarial.steps"}
    assert (own.what, own.rival) == ("one step", "default")


def test_what_an_extending_study_states_itself_stands_in_place_of_the_other_s(study):
    own = extending(study, overrides={"finetune.epochs": 5}, seeds={"ladder": [7], "without": [7], "added": [7]})
    assert differing(own["default"].params, RECIPE) == {"finetune.epochs"}
    assert own["bare"].seeds == (7,)


def test_seeds_of_single_arms_stay_with_the_study_that_states_them(study):
    study.write_study(added=[STUDY["added"][0] | {"seeds": [7]}])
    own = extending(study)["pgd"], extending(study, changes={"pgd": {"seeds": [8]}})["pgd"]
    assert arms_of(study)["pgd"].seeds == (7,)
    assert [arm.seeds for arm in own] == [(0,), (8,)]


def test_arms_of_an_extending_study_come_after_the_other_s(study):
    more = {"name": "longer", "what": "more epochs", "overrides": {"finetune.epochs": 7}}
    own, others = list(extending(study, leave_out=[], added=[more])), list(arms_of(study))
    assert own == [*others, "longer"]


def test_an_arm_is_judged_by_those_of_the_study_s_parts_that_it_names(study):
    more = {"name": "longer", "what": "more epochs", "overrides": {"finetune.epochs": 7}}
    arms = extending(study, verdicts=["labeled", "test"], added=[more | {"verdicts": ["holdout", "test"]}])
    assert (arms["longer"].verdicts, arms["pgd"].verdicts) == (("test",), ("labeled", "test"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"added": "longer"}, "added"),
        (
            {"added": [{"name": "pgd", "what": "again", "overrides": {"finetune.epochs": 7}}]},
            "several arms are called pgd",
        ),
        ({"leave_out": ["nobody"]}, "tiny has no arms nobody"),
        ({"changes": {"nobody": {"what": "x"}}}, "tiny has no arms nobody"),
        ({"changes": {"pgd": {"whatever": "x"}}}, "whatever"),
        ({"extends": "nothing"}, "study nothing: not in"),
        ({"extends": "wide"}, "wide extends wide"),
        ({"optimism": ["no_smoothing"]}, "optimism: no arms no_smoothing"),
    ],
)
def test_a_wrong_extension_is_refused_in_one_line(study, changes, told):
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        extending(study, **changes)
    assert told in str(caught.value)


def test_an_unknown_study_names_those_there_are(study):
    with pytest.raises(UserError, match=r"not in .*studies/ \(tiny\)"):
        read_study("other", study.root)


def test_paths_are_absolute_and_generated_data_stay_where_they_are(study):
    own = arms_of(study, "data.root=raw", "data.generated=[]", "text.vocab=words/vocab.txt")["bare"].params
    assert own["data"]["root"] == str(study.root / "raw")
    assert own["text"]["vocab"] == str(study.root / "words/vocab.txt")
    assert arms_of(study)["bare"].params["data"]["root"] == "data/demo"


def test_the_digest_of_params_is_the_same_on_another_machine(study):
    """Also where the data lies in a folder of another name; records are held to their videos by truth.parquet."""
    here, there = (
        arms_of(study, f"data.root={folder}/real", "data.generated=[]", f"text.vocab={folder}/vocab.txt")["bare"].params
        for folder in ("/home/a", "/data")
    )
    assert params_digest(here) == params_digest(there)
    assert params_digest(here) != params_digest(here | {"seed": 1})
    other = arms_of(study, "data.root=/data/other", "data.generated=[]", "text.vocab=/data/words.txt")["bare"].params
    assert params_digest(here) != params_digest(other)


def test_the_code_is_that_of_the_stages(study):
    """A comment or docstring is no change, nor is a module that no stage depends on; a statement is."""
    (study.root / "src/framefold/report.py").write_text("y = 2\n")
    deps = ["stages/train.py", "src/framefold/model.py"]
    (study.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": {"cmd": "python", "deps": deps}}}))
    before = code_digest(study.root)
    (study.root / "stages/train.py").write_text('"""Learns."""\nimport framefold.model\n\nprint( 1 )\n')
    (study.root / "src/framefold/report.py").write_text("y = 3\n")
    assert code_digest(study.root) == before
    (study.root / "src/framefold/model.py").write_text("x = 2\n")
    assert code_digest(study.root) != before


def test_dependencies_named_by_item_count(study):
    before = code_digest(study.root)
    (study.root / "src/framefold/model.py").write_text("x = 2\n")
    assert code_digest(study.root) != before


def test_stages_repeated_by_foreach_count(study):
    body = {"cmd": "python", "deps": ["stages/train.py"]}
    dvc_yaml = {"stages": {"train": {"foreach": ["a"], "do": body}}}
    (study.root / "dvc.yaml").write_text(yaml.safe_dump(dvc_yaml), encoding="utf-8")
    before = code_digest(study.root)
    (study.root / "stages/train.py").write_text("print(2)\n", encoding="utf-8")
    assert code_digest(study.root) != before


def test_what_is_recorded_of_a_run_counts(study):
    """No stage depends on it, but rows of two meanings must not stand in one table."""
    path = study.root / OUTCOME
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x = 1\n", encoding="utf-8")
    before = code_digest(study.root)
    path.write_text("x = 2\n", encoding="utf-8")
    assert code_digest(study.root) != before


def test_a_docstring_is_no_statement_but_a_string_is():
    assert meaning('def f():\n    """Says."""') == meaning("def f():\n    pass")
    assert meaning('x = "a"') != meaning('x = "b"')
