"""All of params.yaml at once: every group against its model, then what must fit together across groups.

Stages load their own groups only, so that a change in one re-runs no other; this is for when the whole file is at hand.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from framefold.errors import UserError
from framefold.params.average_weights import AverageWeightsParams
from framefold.params.base import PARAMS_FILE, Group, validate, value_at
from framefold.params.data import DataParams
from framefold.params.demo import DemoParams
from framefold.params.encoders import EncoderParams
from framefold.params.ensemble import EnsembleParams
from framefold.params.finetune import FinetuneParams, own_towers_problem
from framefold.params.ingest import IngestParams
from framefold.params.models import (
    DualStreamParams,
    HeadParams,
    InputParams,
    SingleStreamParams,
    StudentParams,
    TextModelParams,
)
from framefold.params.pretrain import PretrainParams
from framefold.params.pseudo_label import PseudoLabelParams, temperature_problem
from framefold.params.reference import ReferenceParams
from framefold.params.reweight import ReweightParams
from framefold.params.split import SplitParams
from framefold.params.supervised import SupervisedParams, dropout_problem
from framefold.params.teacher import TeacherParams
from framefold.params.text import TextParams

GROUPS: tuple[type[Group], ...] = (
    DataParams,
    DemoParams,
    IngestParams,
    SplitParams,
    TextParams,
    StudentParams,
    SingleStreamParams,
    DualStreamParams,
    TeacherParams,
    PseudoLabelParams,
    PretrainParams,
    FinetuneParams,
    AverageWeightsParams,
    ReweightParams,
    ReferenceParams,
    EnsembleParams,
)

Arch = Literal["single_stream", "dual_stream"]
Split = Literal["labeled", "unlabeled", "test"]
SIZES: dict[Arch, type[HeadParams]] = {"single_stream": SingleStreamParams, "dual_stream": DualStreamParams}
TEACHERS = "models/teacher"
SPECIAL_TOKENS = 4  # [CLS] and one [SEP] after each of title, asr, ocr


class RunParams(Group):
    """The values at the top of params.yaml that belong to no group."""

    seed: int
    precision: Literal["auto", "fp32", "bf16"]
    splits: list[Split]
    archs: list[Arch]
    folds: list[int]
    full_data: list[Literal["all"]]  # [all]: students trained again on all labelled videos; []: no such stage
    earlier_rounds: dict[str, str]
    encoders: dict[str, Any]
    models: dict[Arch, Any]


def validate_all(params: dict[str, Any], path: Path | str = PARAMS_FILE) -> None:
    """Raise one UserError that names the first value of `params` (params.yaml as plain values) that cannot work."""
    own = {key: value_at(params, key, path) for key in RunParams.model_fields}
    run = validate(RunParams, own, "params", path)
    groups = {group: validate(group, value_at(params, group.key, path), group.key, path) for group in GROUPS}
    encoders = {name: validate(EncoderParams, value, f"encoders.{name}", path) for name, value in run.encoders.items()}
    for problem in _contradictions(run, groups, encoders):
        raise UserError(f"{path}: {problem}")


def without_effect(params: dict[str, Any], path: Path | str = PARAMS_FILE) -> list[str]:
    """One line for each value of valid `params` that is set, but that nothing reads as the others are: no mistake in a
    recipe of which a method is turned off, but not to be taken for an effect."""
    pretrain, finetune, average, labels, archs = (
        validate(PretrainParams, params["pretrain"], "pretrain", path),
        validate(FinetuneParams, params["finetune"], "finetune", path),
        validate(AverageWeightsParams, params["average_weights"], "average_weights", path),
        validate(PseudoLabelParams, params["pseudo_label"], "pseudo_label", path),
        [arch for arch in params["archs"] if params["pretrain"]["epochs"][arch]],
    )
    on = {name for arch in archs for name, weight in pretrain.weights[arch].model_dump().items() if weight}  # type: ignore[index]
    set_for_nothing = {
        "pretrain.masking.frame_rate is 0, so mfm": "mfm" in on and not pretrain.masking.frame_rate,
        "pretrain.mismatched.hard": pretrain.mismatched.hard and "itm" not in on,
        "pretrain.contrast.queue": pretrain.contrast.queue and "itc" not in on,
        "pretrain.contrast.soft_targets": pretrain.contrast.soft_targets and "itc" not in on,
        "pretrain.labels": not pretrain.labels.plain and "distillation" not in on,
        "pretrain.per_fold": pretrain.per_fold and "distillation" not in on and not finetune.pseudo.epochs,
        "pseudo_label.temperature": labels.temperature != 1 and labels.source == "neighbours",
        "finetune.pseudo.labels": not finetune.pseudo.labels.plain and not finetune.pseudo.epochs,
        "finetune.checkpoints.select": (
            finetune.checkpoints.select == "top" and finetune.checkpoints.keep >= finetune.epochs
        ),
        "average_weights.method": average.method == "greedy" and average.last == 1,
        "average_weights.last": average.last > finetune.epochs,
    }
    return [f"{path}: {name} has no effect here" for name, found in set_for_nothing.items() if found]


def _contradictions(
    run: RunParams, groups: dict[type[Group], Any], encoders: dict[str, EncoderParams]
) -> Iterator[str]:
    split, teacher, student, text = (groups[g] for g in (SplitParams, TeacherParams, StudentParams, TextParams))
    yield from _lists(run)
    yield from _subset("folds", run.folds, split.n_folds, "split.n_folds")
    yield from _subset("teacher.folds", teacher.folds, teacher.n_folds, "teacher.n_folds")
    if teacher.n_folds > split.n_folds:
        yield f"teacher.n_folds is {teacher.n_folds}, above split.n_folds, {split.n_folds}; some would hold out nothing"
    yield from _rounds(run.earlier_rounds, groups[PseudoLabelParams])
    yield from _labelling_students(run.earlier_rounds, groups)
    yield from _data(groups[DataParams])
    yield from _checkpoints(groups[FinetuneParams], groups[AverageWeightsParams])
    yield from _distillation(groups[PretrainParams], run, teacher)
    trained = {f"models.{arch}": groups[size] for arch, size in SIZES.items() if arch in run.archs}
    yield from _dropout("finetune", groups[FinetuneParams], trained, student.text)
    yield from _dropout("teacher.training", teacher.training, {"teacher.model": teacher.model}, teacher.text)
    if groups[PretrainParams].masking.unit == "word" and not text.words:
        yield "pretrain.masking.unit is word, but text.words is false; set text.words=true"
    for name, model in (("student", student), ("teacher", teacher)):
        yield from _encoder(name, model.encoder, model.inputs, encoders)
        yield from _lengths(name, model.inputs, model.text, text.max_tokens)
    for group in (SingleStreamParams, DualStreamParams):
        yield from _pooling(group.key, groups[group], student.text)
    yield from _pooling("teacher.model", teacher.model, teacher.text)
    sizes, heads = student.text.sizes, groups[DualStreamParams].heads
    if sizes is not None and sizes.hidden % heads:
        yield f"student.text.sizes.hidden is {sizes.hidden}, not divisible by models.dual_stream.heads, {heads}"


def _lists(run: RunParams) -> Iterator[str]:
    lists: tuple[tuple[str, Sequence[object]], ...] = (
        ("splits", run.splits),
        ("archs", run.archs),
        ("folds", run.folds),
    )
    for name, values in lists:
        if not values or len(set(values)) < len(values):
            yield f"{name} is {list(values)}; give at least one, each once"
    if len(run.full_data) > 1:
        yield f"full_data is {run.full_data}; give [all] or []"
    if set(run.splits) != set(get_args(Split)):
        yield f"splits must be {list(get_args(Split))}"
    for arch in run.archs:
        if arch not in run.models:
            yield f"archs names {arch}, which is not under models"


def _subset(name: str, folds: list[int], n_folds: int, bound: str) -> Iterator[str]:
    if not folds or len(set(folds)) < len(folds) or not set(folds) <= set(range(n_folds)):
        yield f"{name} is {folds}; give some of 0..{n_folds - 1} ({bound} is {n_folds}), each once"


def _rounds(earlier: dict[str, str], final: PseudoLabelParams) -> Iterator[str]:
    known = [TEACHERS]
    for name, teachers in earlier.items():
        if not re.fullmatch(r"[a-z0-9_]+", name):
            yield f"earlier_rounds has {name!r}; name rounds by small letters, digits and underscores"
        if teachers not in known:
            yield f"earlier_rounds.{name} is {teachers}; who labels in it must be there before: {', '.join(known)}"
        known.append(f"models/rounds/{name}/swa")
    if final.teachers not in known:
        yield f"pseudo_label.teachers is {final.teachers}; give one of {', '.join(known)}"
    asked = {*earlier.values(), final.teachers}
    for name in earlier:
        if f"models/rounds/{name}/swa" not in asked:
            yield f"earlier_rounds.{name} labels for no later round; name models/rounds/{name}/swa in one, or drop it"


def _labelling_students(earlier: dict[str, str], groups: dict[type[Group], Any]) -> Iterator[str]:
    """What cannot be where students label in a later round."""
    students = {*earlier.values(), groups[PseudoLabelParams].teachers} != {TEACHERS}
    per_fold = groups[PretrainParams].per_fold
    towers = own_towers_problem(groups[FinetuneParams], students)
    yield from filter(None, [towers, temperature_problem(groups[PseudoLabelParams], students, per_fold)])


def _data(data: DataParams) -> Iterator[str]:
    if data.generated not in ([], ["demo"]):
        yield f"data.generated is {data.generated}; give [demo] or []"
    if data.generated and data.root != "data/demo":
        yield f"data.root is {data.root}, but data.generated builds data/demo; set data.generated=[] for your own data"


def _checkpoints(finetune: FinetuneParams, average: AverageWeightsParams) -> Iterator[str]:
    if average.last > finetune.checkpoints.keep:
        yield f"average_weights.last is {average.last}, but finetune.checkpoints.keep is {finetune.checkpoints.keep}"
    elif finetune.checkpoints.select == "top" and average.last != finetune.checkpoints.keep:
        yield (
            f"average_weights.last is {average.last} of the {finetune.checkpoints.keep} best checkpoints that "
            "finetune.checkpoints keeps; set both to the same number"
        )


def _distillation(pretrain: PretrainParams, run: RunParams, teacher: TeacherParams) -> Iterator[str]:
    for arch in run.archs:
        if arch not in pretrain.weights:
            yield f"pretrain.weights.{arch} is missing; archs names {arch}"
    missing = sorted({fold % teacher.n_folds for fold in run.folds} - set(teacher.folds))
    if pretrain.per_fold and missing:
        yield f"pretrain.per_fold needs the teachers {missing} of your folds; add them to teacher.folds"


def _dropout(
    name: str, training: SupervisedParams, models: dict[str, HeadParams], text: TextModelParams
) -> Iterator[str]:
    """Methods that live on dropout, where there is none."""
    problems = (dropout_problem(name, training, model, head, text) for model, head in models.items())
    yield from filter(None, problems)


def _encoder(name: str, encoder: str, inputs: InputParams, encoders: dict[str, EncoderParams]) -> Iterator[str]:
    if encoder not in encoders:
        yield f"{name}.encoder is {encoder}, which is not under encoders ({', '.join(encoders)})"
    elif inputs.max_frames > encoders[encoder].max_frames:
        stored = encoders[encoder].max_frames
        yield f"{name}.inputs.max_frames is {inputs.max_frames}, but encoders.{encoder}.max_frames stores only {stored}"


def _lengths(name: str, inputs: InputParams, text: TextModelParams, max_tokens: int) -> Iterator[str]:
    for segment in ("title", "asr", "ocr"):
        if getattr(inputs, segment) > max_tokens:
            yield f"{name}.inputs.{segment} is {getattr(inputs, segment)}, but text.max_tokens stores only {max_tokens}"
    if text.sizes is None:
        return
    tokens, positions = SPECIAL_TOKENS + inputs.title + inputs.asr + inputs.ocr, text.sizes.max_positions
    longest = max(tokens, 1 + inputs.max_frames)  # frames count their positions anew, after dual_stream's learned query
    if longest > positions:
        yield f"{name}.inputs need {longest} positions, but {name}.text.sizes.max_positions is {positions}"
    if text.sizes.hidden % text.sizes.heads:
        yield f"{name}.text.sizes.hidden is {text.sizes.hidden}, not divisible by heads, {text.sizes.heads}"


def _pooling(name: str, model: HeadParams, text: TextModelParams) -> Iterator[str]:
    if text.sizes is None or model.pooling.frames != "nextvlad":
        return
    wide, groups = model.pooling.nextvlad.expansion * text.sizes.hidden, model.pooling.nextvlad.groups
    if wide % groups:
        yield f"{name}.pooling.nextvlad: {wide} widened hidden units are not divisible by groups, {groups}"
