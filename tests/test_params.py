"""params.yaml is typed, complete and refuses what cannot work. Run: .venv/bin/python -m pytest tests/test_params.py"""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from framefold.errors import UserError
from framefold.params.base import TOP_LEVEL_KEYS, load, read
from framefold.params.encoders import EncoderParams
from framefold.params.finetune import FinetuneParams
from framefold.params.pretrain import PretrainParams
from framefold.params.validation import GROUPS, RunParams, validate_all, without_effect

ROOT = Path(__file__).resolve().parents[1]
NEXTVLAD = {
    "text": "mean",
    "frames": "nextvlad",
    "nextvlad": {"clusters": 4, "groups": 5, "expansion": 2, "output": 8},
}


@pytest.fixture
def params() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def changed(params: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    result = deepcopy(params)
    block = result
    *parents, last = key.split(".")
    for parent in parents:
        block = block[parent]
    block[last] = value
    return result


def refusal(params: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        validate_all(params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_committed_params_validate_as_a_whole(params):
    validate_all(params)


def test_every_top_level_key_is_validated_by_a_group():
    covered = {group.key.split(".")[0] for group in GROUPS} | set(RunParams.model_fields)
    assert covered == TOP_LEVEL_KEYS


def fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from fields(part)


def test_no_value_has_a_default_in_code():
    with_defaults = [name for g in (*GROUPS, EncoderParams, RunParams) for name, f in fields(g) if not f.is_required()]
    assert with_defaults == []


def test_a_misspelt_key_is_refused_and_named(params):
    assert "finetune.epochz" in refusal(changed(params, "finetune.epochz", 3))


def test_a_misspelt_group_is_refused(tmp_path, params):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**params, "fine_tune": {}}))
    with pytest.raises(UserError, match="fine_tune"):
        read(path)


def test_a_missing_value_is_named(params):
    del params["teacher"]["training"]["epochs"]
    assert "teacher.training.epochs" in refusal(params)


def test_numbers_written_as_strings_are_numbers(tmp_path, params):
    """PyYAML reads 3e-05 as a string; `dvc exp run -S` writes it so."""
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(changed(params, "finetune.lr.head", "3e-05")))
    assert load(FinetuneParams, path=path).lr.head == 3e-05


def test_words_where_numbers_belong_are_refused(params):
    assert "finetune.lr.head" in refusal(changed(params, "finetune.lr.head", "fast"))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("folds", [0, 5], "split.n_folds"),
        ("folds", [], "folds"),
        ("folds", [1, 1], "each once"),
        ("archs", ["single_stream", "single_stream"], "archs"),
        ("archs", ["triple_stream"], "archs"),
        ("splits", ["labeled", "test"], "unlabeled"),
        ("precision", "fp64", "precision"),
        ("teacher.folds", [3], "teacher.n_folds"),
        ("teacher.n_folds", 6, "split.n_folds"),
        ("student.encoder", "large", "encoders"),
        ("teacher.encoder", "large", "encoders"),
        ("student.inputs.max_frames", 7, "encoders.small.max_frames"),
        ("teacher.inputs.title", 129, "text.max_tokens"),
        ("student.inputs.asr", 40, "max_positions"),
        ("student.text.sizes.heads", 3, "not divisible"),
        ("models.dual_stream.heads", 3, "not divisible"),
        ("models.dual_stream.pooling.frames", "median", "pooling.frames"),
        ("models.single_stream.pooling", NEXTVLAD, "models.single_stream.pooling.nextvlad: 256"),
        ("teacher.model.pooling", NEXTVLAD, "teacher.model.pooling.nextvlad: 384"),
        ("finetune.vision.min_crop", 0, "finetune.vision.min_crop"),
        ("average_weights.last", 4, "finetune.checkpoints.keep"),
        ("full_data", ["half"], "full_data"),
        ("full_data", ["all", "all"], "full_data"),
        ("ensemble.weights", "best", "ensemble.weights"),
        ("reweight.method", "luck", "reweight.method"),
        ("average_weights.method", "top", "average_weights.method"),
        ("data.root", "data/other", "data.generated"),
        ("data.generated", ["other"], "data.generated"),
        ("demo.min_frames", 7, "demo: min_frames is 7, above max_frames, 6"),
        ("encoders.small.name", "ViT-B-16", "exactly one"),
        ("finetune.layer_decay", 0.0, "finetune.layer_decay"),
        ("teacher.training.oversampling", 1.5, "teacher.training.oversampling"),
        ("finetune.loss.class_balance", 1.0, "finetune.loss.class_balance"),
        ("student.text.folder", "pretrained/bert", "exactly one"),
        ("earlier_rounds", {"first": "models/teacher"}, "earlier_rounds.first labels for no later round"),
    ],
)
def test_values_that_contradict_each_other_are_refused(params, key, value, told):
    assert told in refusal(changed(params, key, value))


@pytest.mark.parametrize(
    ("block", "model", "text"),
    [
        ("finetune", "models.single_stream", "student.text"),
        ("finetune", "models.dual_stream", "student.text"),
        ("teacher.training", "teacher.model", "teacher.text"),
    ],
)
def test_methods_that_live_on_dropout_are_refused_without_it(params, block, model, text):
    silent = changed(changed(params, f"{model}.dropout", 0.0), f"{text}.sizes.dropout", 0.0)
    validate_all(silent)
    assert f"{model} has no dropout" in refusal(changed(silent, f"{block}.r_drop", 0.5))
    validate_all(changed(changed(silent, f"{block}.r_drop", 0.5), f"{text}.sizes.dropout", 0.1))
    assert f"{model}.dropout is 0" in refusal(changed(silent, f"{model}.dropout_samples", 3))


@pytest.mark.parametrize(
    ("key", "value", "off"),
    [
        ("pretrain.mismatched.hard", 0.5, "itm"),
        ("pretrain.contrast.queue", 64, "itc"),
        ("pretrain.contrast.soft_targets", 0.4, "itc"),
        ("pretrain.labels.hard", 1.0, "distillation"),
        ("pretrain.labels.balance", 0.5, "distillation"),
        ("pretrain.labels.min_confidence", 0.5, "distillation"),
        ("pretrain.per_fold", True, "distillation"),
    ],
)
def test_what_an_objective_that_is_off_would_read_is_told(params, key, value, off):
    """Of the architectures that are pretrained; one that has the objective is enough."""
    name = key if key.count(".") < 2 or "labels" not in key else "pretrain.labels"
    set_ = changed(params, key, value)
    assert without_effect(params) == without_effect(set_) == []
    without = changed(set_, f"pretrain.weights.dual_stream.{off}", 0.0)
    both = changed(without, f"pretrain.weights.single_stream.{off}", 0.0)
    told = [f"params.yaml: {name} has no effect here"]
    assert without_effect(both) == without_effect(changed(without, "archs", ["dual_stream"])) == told
    assert without_effect(changed(set_, "pretrain.epochs", {"single_stream": 0, "dual_stream": 0})) == told
    validate_all(both)  # turned off for a run, not wrong


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("finetune.pseudo.labels.hard", 1.0, "finetune.pseudo.labels"),
        ("pretrain.masking.frame_rate", 0.0, "pretrain.masking.frame_rate is 0, so mfm"),
        ("finetune.epochs", 1, "average_weights.last"),
    ],
)
def test_other_values_without_effect_are_told(params, key, value, told):
    assert without_effect(changed(params, key, value)) == [f"params.yaml: {told} has no effect here"]


def test_what_tells_whose_labels_the_first_phase_learns_has_an_effect(params):
    """Without it students would hear teachers that saw their fold: whoever is told to turn it off gets a leak."""
    alone = changed(
        changed(params, "pretrain.per_fold", True), "pretrain.epochs", {"single_stream": 0, "dual_stream": 0}
    )
    assert without_effect(alone) == ["params.yaml: pretrain.per_fold has no effect here"]
    assert without_effect(changed(alone, "finetune.pseudo.epochs", 1)) == []


def test_a_temperature_of_votes_that_have_none_is_told(params):
    fitted = changed(params, "pseudo_label.temperature", "fitted")
    assert without_effect(fitted) == without_effect(changed(fitted, "pseudo_label.source", "both")) == []
    told = ["params.yaml: pseudo_label.temperature has no effect here"]
    assert without_effect(changed(fitted, "pseudo_label.source", "neighbours")) == told


def test_choosing_among_as_many_epochs_as_are_kept_is_told(params):
    few = changed(params, "finetune.checkpoints", {"keep": 2, "select": "top"})
    assert without_effect(few) == []
    told = ["params.yaml: finetune.checkpoints.select has no effect here"]
    assert without_effect(changed(few, "finetune.epochs", 2)) == told


def test_a_greedy_soup_of_one_checkpoint_is_told(params):
    one = changed(changed(params, "average_weights.last", 1), "average_weights.method", "greedy")
    assert without_effect(one) == ["params.yaml: average_weights.method has no effect here"]


def test_a_temperature_is_fitted_on_predictions_of_labellers_that_never_heard_of_the_labels(params):
    params = changed(changed(params, "pseudo_label.temperature", "fitted"), "earlier_rounds.first", "models/teacher")
    students = changed(params, "pseudo_label.teachers", "models/rounds/first/swa")
    assert "pseudo_label.temperature is fitted" in refusal(students)
    validate_all(changed(students, "pretrain.per_fold", True))


def test_honest_pretraining_needs_the_teachers_of_its_folds(params):
    params = changed(changed(params, "pretrain.per_fold", True), "teacher.folds", [0, 1])
    assert "teachers [2]" in refusal(params)


@pytest.mark.parametrize("epochs", [5, {"single_stream": 5, "dual_stream": -1}, {"triple_stream": 5}])
def test_pretraining_lasts_a_number_of_epochs_for_each_architecture(params, epochs):
    assert "pretrain.epochs" in refusal(changed(params, "pretrain.epochs", epochs))


def test_an_architecture_without_epochs_is_named(params):
    assert "epochs.dual_stream is missing" in refusal(changed(params, "pretrain.epochs", {"single_stream": 5}))


@pytest.mark.parametrize(("arch", "epochs"), [("single_stream", 7), ("dual_stream", 2)])
def test_the_loop_is_given_the_epochs_of_its_architecture(params, arch, epochs):
    """And everything else of `pretrain` that it reads, as it stands."""
    content = changed(params, "pretrain.epochs", {"single_stream": 7, "dual_stream": 2})["pretrain"]
    training = PretrainParams.model_validate(content).of(arch).model_dump()
    assert training.pop("epochs") == epochs
    assert training == {key: content[key] for key in training}
    assert set(training) == {"batch_size", "batch_tokens", "lr", "weight_decay", "warmup", "max_grad_norm", "ema_decay"}


def test_what_concerns_another_architecture_leaves_no_trace(params):
    """Unfinished work of one is not dropped when the other's epochs or weights change."""
    content = params["pretrain"]
    other = changed(changed(content, "epochs.dual_stream", 9), "weights.dual_stream.itc", 0.9)
    before, after = (PretrainParams.model_validate(each) for each in (content, other))
    assert before.only("single_stream").model_dump() == after.only("single_stream").model_dump()
    assert before.only("dual_stream").model_dump() != after.only("dual_stream").model_dump()


@pytest.mark.parametrize("block", ["finetune", "teacher.training"])
def test_the_ema_as_teacher_needs_an_ema(params, block):
    params = changed(params, f"{block}.self_distillation.weight", 0.5)
    validate_all(params)
    assert "set ema_decay above 0" in refusal(changed(params, f"{block}.ema_decay", 0.0))
