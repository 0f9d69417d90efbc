"""Learning from labels with auxiliary terms: what they sum to, what they cost, what is kept, and that they resume.

pytest tests/test_supervised.py
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from real_tasks import FGM, build, fold_data, supervised_params, train_real
from real_tasks import real_task as real_task_of
from stores import CATEGORIES, make_project
from torch import Tensor, nn

from framefold.data.batches import EpochBatches
from framefold.data.folds import HOLDOUT, Folds
from framefold.data.videos import open_labeled, open_videos
from framefold.models.registry import load_model, save_model
from framefold.objectives.supervised_contrast import supervised_contrast
from framefold.params.base import load
from framefold.params.finetune import FinetuneParams
from framefold.params.models import StudentParams
from framefold.params.training import AdversarialParams, OptimizationParams
from framefold.scratch import Scratch
from framefold.training.adversarial import build_adversary
from framefold.training.classifiers import FoldData, classifier_task, epoch_samples, open_fold, train_classifier
from framefold.training.loop import TrainResult
from framefold.training.optimization import parameter_groups
from framefold.training.sharing import Share
from framefold.training.supervised import SupervisedModel, SupervisedTask
from framefold.training.tasks import ClassificationTask

ARCHS = ["single_stream", "dual_stream"]
LABELS = np.array([0] * 30 + [1] * 9 + [2] * 4 + [3] * 2 + [4])  # of the videos that train; nobody has class 5
OFF: dict[str, Any] = {
    "loss": {"focal_gamma": 0.0, "class_balance": 0.0, "logit_adjustment": 0.0},
    "level1": 0.0,
    "r_drop": 0.0,
    "self_distillation": {"weight": 0.0, "temperature": 2.0},
    "contrast": {"weight": 0.0, "temperature": 0.2, "embed_dim": 8},
    "oversampling": 0.0,
    "layer_decay": 1.0,
}
ON = {  # one term at a time
    "focal": {"loss": OFF["loss"] | {"focal_gamma": 2.0}},
    "class balance": {"loss": OFF["loss"] | {"class_balance": 0.9}},
    "logit adjustment": {"loss": OFF["loss"] | {"logit_adjustment": 1.0}},
    "level1": {"level1": 0.5},
    "r_drop": {"r_drop": 0.5},
    "self_distillation": {"self_distillation": {"weight": 0.5, "temperature": 2.0}},
    "contrast": {"contrast": {"weight": 0.5, "temperature": 0.2, "embed_dim": 8}},
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def supervised(arch: str = "single_stream", dropout: float = 0.0, **on: Any) -> SupervisedModel:
    """A model with random weights and nothing on but `on`."""
    torch.manual_seed(0)
    return SupervisedModel(build(arch, dropout)[0], supervised_params(**OFF | on), CATEGORIES, LABELS)


def batch_of(size: int = 12) -> dict[str, Tensor]:
    return fold_data(np.arange(size)).training.batch(np.arange(size))


def loss_of(model: SupervisedModel, batch: dict[str, Tensor], average: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    return model(batch, Share(len(batch["label"]), len(batch["label"])), average)


def other_weights(model: SupervisedModel) -> SupervisedModel:
    """What an EMA may look like: a copy that has moved."""
    average = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return average


# ---- off is off


def run(params: FinetuneParams, data: FoldData, dropout: float = 0.1, after_epoch: Any = None) -> TrainResult:
    """As stage finetune does it, in scratch of its own."""
    torch.manual_seed(0)
    with Scratch("supervised@0", {}) as scratch:
        result = train_classifier(
            build("single_stream", dropout)[0],
            data,
            params,
            seed=0,
            precision="fp32",
            scratch=scratch,
            after_epoch=after_epoch,
        )
        scratch.finish()
    return result


def content(result: TrainResult) -> tuple:
    states = [*result.model.state_dict().items(), *result.ema.state_dict().items()]
    return [(name, tensor.numpy().tobytes()) for name, tensor in states], result.history, result.epochs


def test_committed_params_train_by_cross_entropy_alone() -> None:
    """The task, and so its checkpoints and random numbers, are those of a `ClassificationTask`."""
    data, params = fold_data(np.arange(20)), load(FinetuneParams)
    task, rates = classifier_task(build("single_stream", 0.0)[0], data, params)
    assert isinstance(task, ClassificationTask)
    assert rates == params.peak_rates()


def test_terms_of_weight_0_change_no_byte() -> None:
    """A `SupervisedTask` with nothing on, against a `ClassificationTask`: with dropout, FGM and EMA, all weights."""
    params = supervised_params(**OFF, epochs=2, batch_size=7, adversarial=FGM.model_dump())
    plain = content(run(params, fold_data(np.arange(35))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("framefold.training.classifiers.needs_more_than_cross_entropy", lambda params: True)
        wrapped = content(run(params, fold_data(np.arange(35))))
    assert wrapped[0] == plain[0]
    assert [{name: row[name] for name in plain[1][0]} for row in wrapped[1]] == plain[1]


@pytest.mark.parametrize(("name", "passes"), [("focal", 1), ("level1", 1), ("r_drop", 2), ("contrast", 1)])
def test_what_a_term_costs(name: str, passes: int) -> None:
    """Passes of the backbone a batch; the EMA's own come on top where it is asked."""
    model, seen = supervised(**ON[name]), []
    model.backbone.text.encoder.register_forward_hook(lambda *_: seen.append(1))
    loss_of(model, batch_of())
    assert len(seen) == passes


# ---- a method that is on by itself trains


def task_of(**on: Any) -> tuple[SupervisedTask, dict[str, float]]:
    """What `classifier_task` makes of params with nothing on but `on`."""
    task, rates = classifier_task(
        build("single_stream", 0.3)[0], fold_data(np.arange(20)), supervised_params(**OFF | on)
    )
    assert isinstance(task, SupervisedTask)
    return task, rates


@pytest.mark.parametrize("name", ["level1", "r_drop", "self_distillation", "contrast"])
def test_a_term_by_itself_is_added_to_the_loss(name: str) -> None:
    task, _ = task_of(**ON[name])
    task.average = other_weights(task.model)
    total, parts = task.loss(batch_of(), Share(12, 12))
    assert parts.keys() == {"accuracy", "loss_label", f"loss_{name}"}
    assert parts[f"loss_{name}"] > 0
    assert total.item() == pytest.approx(float(parts["loss_label"] + 0.5 * parts[f"loss_{name}"]))


@pytest.mark.parametrize("name", ["focal", "class balance", "logit adjustment"])
def test_another_loss_by_itself_is_what_trains(name: str) -> None:
    task, _ = task_of(**ON[name])
    task.model.eval()  # without dropout
    batch = batch_of()
    plain = ClassificationTask(task.model.backbone, 0.1).loss(batch, Share(12, 12))[0]
    assert abs((task.loss(batch, Share(12, 12))[0] - plain).item()) > 1e-3


def test_layer_decay_by_itself_slows_the_lower_layers() -> None:
    """One layer at 0.5: of the text encoder's parameters the embeddings alone are below it."""
    task, rates = task_of(layer_decay=0.5)
    found = {group["lr"] for group in parameter_groups(task.model, task.role_of, rates, 0.01)}
    lr = task.model.params.lr
    assert sorted(found) == pytest.approx(sorted([lr.head, lr.text, lr.text / 2]))


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_oversampling_by_itself_evens_out_what_trains(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    data, params = fold_data(np.arange(60)), supervised_params(**OFF | {"oversampling": power, "epochs": 1})
    shown, get = list[int](), EpochBatches.__getitem__

    def spy(self: EpochBatches, index: int) -> Any:
        batch = get(self, index)
        shown.extend(batch["label"].tolist())
        return batch

    monkeypatch.setattr(EpochBatches, "__getitem__", spy)
    run(params, data)
    own = np.bincount(data.training.labels)
    assert np.ptp(own) > 3
    assert np.bincount(shown).tolist() == (own if power == 0 else np.full(6, 10)).tolist()


def test_without_oversampling_an_epoch_is_the_videos_that_train() -> None:
    data = fold_data(np.arange(20))
    assert epoch_samples(data, supervised_params(**OFF), 0, 0) is data.training


# ---- what the terms are


@pytest.mark.parametrize("arch", ARCHS)
def test_the_loss_is_the_weighted_sum_of_its_terms(arch: str) -> None:
    """Every term by itself, from the pooled states and logits of the model, in float64 numpy."""
    on = supervised_params().model_dump()
    model, batch = supervised(arch, **{name: on[name] for name in OFF}), batch_of()
    average = other_weights(model)
    with torch.no_grad():
        total, parts = loss_of(model, batch, average)
        pooled, slow = (one.backbone.encode(batch).pooled for one in (model, average))
        logits, teacher = model.backbone.head(pooled).double().numpy(), average.backbone.head(slow).double().numpy()
        groups = model.level1_head(pooled).double().numpy()
        vectors = model.projection(pooled).repeat_interleave(2, dim=0)
    labels, sizes = batch["label"].numpy(), np.bincount(LABELS, minlength=6) ** 0.5
    sizes *= len(LABELS) / sizes.sum()
    shift = 0.5 * np.log(np.maximum(sizes, 1) / len(LABELS))
    weights = (1 - 0.9) / (1 - 0.9 ** np.maximum(sizes, 1))
    weights *= sizes.sum() / (weights * sizes).sum()
    probs, fast_probs, slow_probs = (
        softmax(one) for one in (logits + shift, (logits + shift) / 2, (teacher + shift) / 2)
    )
    target = 0.9 * np.eye(6)[labels] + 0.1 / 6
    level1 = 0.9 * np.eye(2)[labels // 3] + 0.1 / 2
    expected = {
        "loss_label": (weights[labels] * (-target * (1 - probs) ** 1.5 * np.log(probs)).sum(1)).mean(),
        "loss_level1": -(level1 * np.log(softmax(groups))).sum(1).mean(),
        "loss_r_drop": 0.0,
        "loss_self_distillation": 4 * (slow_probs * np.log(slow_probs / fast_probs)).sum(1).mean(),
        "loss_contrast": supervised_contrast(
            vectors, batch["label"].repeat_interleave(2), torch.ones(24, dtype=torch.bool), 0.2
        ).item(),
        "accuracy": (logits.argmax(1) == labels).mean(),
    }
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    weighted = [1, on["level1"], on["r_drop"], on["self_distillation"]["weight"], on["contrast"]["weight"]]
    assert float(total) == pytest.approx(np.dot(weighted, list(expected.values())[:5]), rel=1e-4)


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return exp / exp.sum(1, keepdims=True)


def test_two_dropouts_disagree_and_no_dropout_does_not() -> None:
    for dropout in (0.0, 0.3):
        term = loss_of(supervised(dropout=dropout, **ON["r_drop"]), batch_of())[1]["loss_r_drop"]
        assert (float(term) == 0) == (dropout == 0)


def r_drop_by_hand(views: np.ndarray, labels: np.ndarray) -> list[float]:
    """Total, label loss and R-Drop of weight 0.7 for logits (2, B, C), by their definitions with tau = 1."""
    shifted = views + np.log(np.maximum(np.bincount(LABELS, minlength=6), 1) / len(LABELS))
    (p, q), target = (softmax(view) for view in shifted), 0.9 * np.eye(6)[labels] + 0.1 / 6
    label = np.mean([-(target * np.log(one)).sum(1).mean() for one in (p, q)])
    r_drop = ((p * np.log(p / q)).sum(1) + (q * np.log(q / p)).sum(1)).mean() / 2
    return [label + 0.7 * r_drop, label, r_drop]


def test_both_views_learn_from_the_label_and_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients for two views that disagree, given to the model, against a finite difference."""
    model, batch = supervised(**ON["logit adjustment"], r_drop=0.7), batch_of()
    labels, views = batch["label"].numpy(), np.random.default_rng(0).normal(size=(2, 12, 6)) * 2
    leaves = [torch.tensor(view, dtype=torch.float32, requires_grad=True) for view in views]
    given = iter(leaves)
    monkeypatch.setattr(model.backbone.head, "forward", lambda pooled: next(given))
    total, parts = loss_of(model, batch)
    total.backward()
    found = [total.item(), parts["loss_label"].item(), parts["loss_r_drop"].item()]
    assert found == pytest.approx(r_drop_by_hand(views, labels), rel=1e-5)
    steps = 1e-5 * np.eye(views.size).reshape(-1, *views.shape)
    slopes = [r_drop_by_hand(views + step, labels)[0] - r_drop_by_hand(views - step, labels)[0] for step in steps]
    gradients = torch.stack([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]).numpy()
    assert gradients == pytest.approx(np.reshape(slopes, views.shape) / 2e-5, rel=1e-4, abs=1e-6)


def test_the_average_is_asked_in_eval_mode_without_gradients() -> None:
    """The loop hands over a copy that is in training mode; its dropout must not speak."""
    model = supervised(dropout=0.3, **ON["self_distillation"])
    task = SupervisedTask(model.train())
    average = copy.deepcopy(model)
    task.average = average
    state, batch = torch.get_rng_state(), batch_of()
    task.loss(batch, Share(12, 12))[0].backward()
    assert not average.training
    assert model.training
    assert all(parameter.grad is None for parameter in average.parameters())
    torch.set_rng_state(state)
    alone = loss_of(model, batch)[1]["loss_label"]  # the teacher draws no random numbers
    torch.set_rng_state(state)
    assert torch.equal(task.loss(batch, Share(12, 12))[1]["loss_label"], alone)


def test_the_average_is_left_alone_where_nobody_asks_it() -> None:
    """Without EMA the loop hands over the trained model itself, which must stay in training mode."""
    model = supervised(dropout=0.3, **ON["level1"]).train()
    task = SupervisedTask(model)
    task.average = model
    assert task.average is None
    assert model.training


# ---- sizes of classes


def fold_of(labels: np.ndarray, fold: int) -> FoldData:
    videos, labeled = open_videos("labeled", "small"), open_labeled()
    folds = Folds(labeled.ids, labels, labeled.group, labeled.fold)
    return open_fold(videos, folds, labeled.fold == fold, load(StudentParams).inputs, 32)


def test_sizes_of_classes_are_those_of_the_fold_that_trains() -> None:
    """Labels of the validation fold and of the holdout move nothing; a label that trains does."""
    params = supervised_params(**OFF | {"loss": {"focal_gamma": 0.0, "class_balance": 0.9, "logit_adjustment": 1.0}})
    labeled = open_labeled()
    train = (labeled.fold != HOLDOUT) & (labeled.fold != 1)

    def buffers(labels: np.ndarray) -> list[bytes]:
        model = classifier_task(build("single_stream", 0.0)[0], fold_of(labels, 1), params)[0].model
        assert isinstance(model, SupervisedModel)
        assert model.shift is not None
        assert model.class_weights is not None
        sizes = np.bincount(labels[train], minlength=6)
        assert model.shift.numpy() == pytest.approx(np.log(sizes / sizes.sum()), rel=1e-5)
        return [one.numpy().tobytes() for one in (model.shift, model.class_weights)]

    expected = buffers(labeled.label)
    assert buffers(np.where(train, labeled.label, (labeled.label + 1) % 6)) == expected
    moved = labeled.label.copy()
    moved[np.flatnonzero(train)[0]] = (moved[np.flatnonzero(train)[0]] + 1) % 6
    assert buffers(moved) != expected


# ---- adversaries, rates, micro-batches


@pytest.mark.parametrize("method", ["none", "fgm", "pgd"])
def test_training_attacks_as_params_say(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often a step as the method asks for the loss again: not at all, once, or for each of its steps."""
    attack, asked = FGM.model_dump() | {"method": method}, list[int]()
    ask = ClassificationTask.loss

    def loss(self: ClassificationTask, *arguments: Any) -> Any:
        asked.append(1)
        return ask(self, *arguments)

    monkeypatch.setattr(ClassificationTask, "loss", loss)
    run(supervised_params(**OFF, epochs=1, batch_size=8, adversarial=attack), fold_data(np.arange(32)))
    assert len(asked) == 4 * {"none": 1, "fgm": 2, "pgd": 1 + FGM.steps}[method]


@pytest.mark.parametrize("method", ["fgm", "pgd"])
@pytest.mark.parametrize("name", ON)
def test_an_attack_takes_every_term_along(name: str, method: str) -> None:
    """Gradients are the clean ones plus those at the attacked embeddings, recomputed for each step from scratch."""
    model, batch = supervised(**ON[name]), batch_of()
    average = other_weights(model) if name == "self_distillation" else None
    weight = model.word_embeddings.weight
    before = weight.detach().clone()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        loss_of(model, batch, average)[0].backward()
        return [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in model.parameters()]

    place = next(index for index, one in enumerate(model.parameters()) if one is weight)
    clean = last = gradients()
    moved = torch.zeros_like(before)
    for _ in range(1 if method == "fgm" else 3):
        step = 0.5 if method == "fgm" else 0.3
        moved = moved + step * last[place] / last[place].norm()
        moved = moved * min(1.0, 0.5 / moved.norm().item())
        with torch.no_grad():
            weight.copy_(before + moved)
        last = gradients()
    with torch.no_grad():
        weight.copy_(before)
    model.zero_grad()
    adversary = build_adversary(model, AdversarialParams(method=method, epsilon=0.5, alpha=0.3, steps=3))
    assert adversary is not None
    loss_of(model, batch, average)[0].backward()
    adversary(lambda: loss_of(model, batch, average)[0].backward())
    assert torch.equal(weight.detach(), before)
    for parameter, one, other in zip(model.parameters(), clean, last, strict=True):
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, one + other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
def test_layer_decay_reaches_the_optimizer(arch: str) -> None:
    """One layer at 0.5: it keeps lr.text, the embeddings have half of it, all else lr.head."""
    model = supervised(arch, layer_decay=0.5, **{name: ON[name][name] for name in ("level1", "contrast")})
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, model.role_of, model.learning_rates(), 0.01)
    lr = model.params.lr
    for group in groups:
        for name in (names[parameter] for parameter in group["params"]):
            embedded = name.startswith("backbone.text.embeddings.")
            in_text = lr.text / 2 if embedded else lr.text
            assert group["lr"] == pytest.approx(in_text if name.startswith("backbone.text.") else lr.head), name
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_micro_batches_give_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every term but the contrast is a mean over videos; with the contrast a batch is never cut."""
    params = OptimizationParams(epochs=1, batch_size=7, weight_decay=0.0, warmup=0.2, max_grad_norm=1.0, ema_decay=0.9)

    def history(contrast: float) -> list[dict[str, float]]:
        real = real_task_of("supervise single_stream", videos=35)
        real.task.model.params = supervised_params(contrast={"weight": contrast, "temperature": 0.2, "embed_dim": 8})
        if not contrast:
            real.task.model.projection, real.task.whole_batch = None, False
        return train_real(real, params, "micro").history

    for contrast in (0.0, 0.4):
        monkeypatch.setenv("FRAMEFOLD_MICRO_BATCH", "0")
        whole = history(contrast)
        monkeypatch.setenv("FRAMEFOLD_MICRO_BATCH", "3")
        for row, expected in zip(history(contrast), whole, strict=True):
            assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)


# ---- what is kept, and interruptions


class Killed(BaseException):
    """Stands for SIGKILL."""


def evaluate(epoch: int, model: nn.Module, ema: nn.Module) -> dict[str, Any]:
    assert not isinstance(model, SupervisedModel)
    assert not isinstance(ema, SupervisedModel)
    return {"epoch": epoch, "weight": ema.head.out.weight.sum().item()}  # type: ignore[union-attr]


def test_students_are_kept_without_the_heads_of_their_training(tmp_path: Path) -> None:
    """Callbacks and result have the student's own names, and its file loads strictly."""
    result = run(supervised_params(epochs=1, batch_size=16), fold_data(np.arange(32)), after_epoch=evaluate)
    expected = list(build("single_stream", 0.0)[0].state_dict())
    for model in (result.model, result.ema):
        assert list(model.state_dict()) == expected
    save_model(tmp_path, result.ema)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.head.out.weight, result.ema.head.out.weight)  # type: ignore[union-attr]
    assert {"loss_label", "loss_level1", "loss_r_drop", "loss_self_distillation", "loss_contrast"} <= set(
        result.history[0]
    )


def test_a_killed_training_with_everything_on_ends_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, EMA as teacher, oversampling and FGM; killed in the first epoch and in a later one."""
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINT_SECONDS", "0")
    params = supervised_params(epochs=3, batch_size=8, adversarial=FGM.model_dump())
    data = fold_data(np.arange(32))
    whole = content(run(params, data, after_epoch=evaluate))
    get = EpochBatches.__getitem__
    for death in ((0, 2), (1, 1), (2, 3)):

        def dying(self: EpochBatches, index: int, death: tuple[int, int] = death) -> Any:
            if (self.epoch, index) == death:
                raise Killed
            return get(self, index)

        with monkeypatch.context() as patch:
            patch.setattr(EpochBatches, "__getitem__", dying)
            with pytest.raises(Killed):
                run(params, data, after_epoch=evaluate)
    assert content(run(params, data, after_epoch=evaluate)) == whole
