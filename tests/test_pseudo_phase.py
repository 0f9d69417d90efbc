"""A first phase of finetuning on soft labels. Run: .venv/bin/python -m pytest tests/test_pseudo_phase.py"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stores import CATEGORIES, DIM, VOCAB, make_pretrained, make_project, small_params, write_soft_labels
from tiny_project import run_stage

from framefold.data.batches import sample_rng
from framefold.data.pseudo_labels import open_pseudo_labels
from framefold.data.sampling import CHOICE, ResampledVideos, resampled
from framefold.data.videos import open_labeled, open_videos
from framefold.inference.predict import predict_logits
from framefold.models.registry import build_model
from framefold.objectives.distillation import distillation_loss
from framefold.params.base import load
from framefold.params.finetune import FinetuneParams
from framefold.params.labels import LabelParams
from framefold.params.models import SingleStreamParams, StudentParams
from framefold.params.pretrain import PretrainParams
from framefold.rounds import Round
from framefold.scratch import Scratch
from framefold.storage import read_json
from framefold.training import pseudo_phase
from framefold.training.classifiers import FoldData, open_fold
from framefold.training.loop import TrainResult
from framefold.training.pool import LabelledPool, open_labelled_pool, open_pool
from framefold.training.pseudo_phase import PHASE, learn_pseudo_labels
from framefold.training.tasks import DistillationTask

PSEUDO = Round(None).pseudo
OFF = LabelParams(hard=0, temperature=1, min_confidence=0, balance=0)


class Seen(Exception):
    """What the stage hands over is known; the rest of it is not needed."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    params = small_params()
    params["finetune"]["pseudo"] |= {"epochs": 6, "batch_size": 16}
    make_project(tmp_path, params)
    write_soft_labels(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pool(**changes: float) -> LabelledPool:
    return open_labelled_pool(load(StudentParams), PSEUDO, None, OFF.model_copy(update=changes))


def stored() -> np.ndarray:
    return np.load(PSEUDO / "soft.npy").astype(np.float64)


def test_the_phase_has_all_usable_videos_with_a_sure_label_and_no_other(project):
    usable = open_pseudo_labels(PSEUDO).usable
    for least in (0.0, 0.7):
        sure = (stored().max(1) > 0) & (stored().max(1) >= least)
        assert pool(min_confidence=least).videos.rows.tolist() == np.flatnonzero(usable & sure).tolist()


def test_balance_draws_anew_every_epoch_and_the_same_again(project):
    own = pool(balance=1.0)
    rows, size = own.videos.rows, len(own.videos)
    drawn = [rows[own.epoch(3, epoch).chosen] for epoch in (0, 1)]
    for epoch in (0, 1):
        expected = rows[resampled(own.classes, 1.0, sample_rng(3, epoch, CHOICE))]
        assert drawn[epoch].tolist() == expected.tolist() == rows[own.epoch(3, epoch).chosen].tolist()
    assert drawn[0].tolist() != drawn[1].tolist()
    present = np.unique(own.classes)
    counts = np.bincount(stored()[drawn[0]].argmax(1), minlength=len(CATEGORIES))[present]
    assert np.ptp(counts) <= 2 + size % len(present) / len(present)


def test_without_balance_everyone_comes_once(project):
    own = pool()
    assert own.epoch(3, 0) is own.videos


def test_drawn_videos_are_read_as_they_are(project):
    own = pool(balance=1.0, hard=0.5)
    videos = own.epoch(0, 0)
    batch, again = videos.batch(np.arange(12)), own.videos.batch(videos.chosen[:12])
    assert batch.keys() == again.keys() >= {"soft", "input_ids", "frames"}
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert videos.sizes()[:12].sum(1).tolist() == (batch["text_mask"].sum(1) + batch["frame_mask"].sum(1)).tolist()


def test_pretraining_weighs_rare_classes_and_measures_on_the_stored_labels(project):
    """Classes as often as sure labels have them; the unsure ones are left to the loss, which counts them."""
    student, labels = load(StudentParams), OFF.model_copy(update={"balance": 1.0, "min_confidence": 0.5})
    plain, weighed = (open_pool(student, PSEUDO, None, one, 10, 0) for one in (OFF, labels))
    assert plain.training.rows.tolist() == weighed.training.rows.tolist()
    soft = weighed.training.batch(np.arange(len(weighed.training)))["soft"].numpy()
    stored_rows = stored()[weighed.training.rows]
    used = stored_rows.max(1) >= 0.5 * stored_rows.sum(1)
    used &= stored_rows.any(1)
    assert soft.any(1).tolist() == stored_rows.any(1).tolist() != used.tolist()
    totals = np.array([soft[used & (stored_rows.argmax(1) == c)].sum() for c in np.unique(stored_rows[used].argmax(1))])
    assert np.allclose(totals, totals.mean(), rtol=0.02)  # every class has the same say
    assert soft[used].sum() / used.sum() == pytest.approx(1, rel=0.02)
    everyone = np.arange(10)
    assert np.array_equal(weighed.held_out.batch(everyone)["soft"], plain.held_out.batch(everyone)["soft"])


def fold_data() -> FoldData:
    videos = open_videos("labeled", "small")
    labeled = open_labeled(videos)
    return open_fold(videos, labeled, labeled.fold == 0, load(StudentParams).inputs, 16)


def fresh_student() -> torch.nn.Module:
    torch.manual_seed(1)
    shape = VOCAB, DIM, len(CATEGORIES)
    return build_model("single_stream", load(StudentParams).text, load(SingleStreamParams), *shape)


def learn(model: torch.nn.Module) -> None:
    with Scratch("finetune@x-0", {}) as scratch:
        learn_pseudo_labels(model, pool(), fold_data(), load(FinetuneParams), seed=0, precision="fp32", scratch=scratch)


def divergence(model: torch.nn.Module) -> float:
    """Cross-entropy with the soft labels of the phase's videos."""
    own = pool()
    logits = torch.from_numpy(predict_logits(model, own.videos, 16, "cpu"))
    return float(distillation_loss(logits, torch.from_numpy(stored()[own.videos.rows]), len(own.videos)))


def test_the_phase_learns_as_its_labels_say(project, monkeypatch):
    """A third of the loss on the best class, the rest with both sides at temperature 2."""
    params = load(FinetuneParams)
    phase = params.pseudo.model_copy(update={"labels": OFF.model_copy(update={"hard": 1 / 3, "temperature": 2.0})})
    seen = []

    def one_loss(task: DistillationTask, *_: object, **__: object) -> None:
        batch = own.videos.batch(np.arange(16))
        loss, logits = task.loss(batch, None)[0], task.model(batch)
        seen.append((float(loss.detach()), logits.detach().double().numpy(), batch["soft"]))

    monkeypatch.setattr(pseudo_phase, "train", one_loss)
    own = pool()
    pseudo_phase.train_on_pool(
        fresh_student().eval(), own, params.model_copy(update={"pseudo": phase}), 0, "fp32", Scratch("finetune@x-0", {})
    )
    ((loss, logits, soft),) = seen
    root = soft.double().sqrt().numpy()
    root /= root.sum(1, keepdims=True)
    log_q, log_q2 = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (logits, logits / 2))
    expected = 2 / 3 * 4 * -(root * log_q2).sum(1).mean() - log_q[np.arange(16), soft.argmax(1)].mean() / 3
    assert loss == pytest.approx(expected, rel=1e-3)


def test_the_stage_gives_the_phase_the_labels_as_params_use_them(project, monkeypatch):
    """Sure ones alone, rare classes shown more often."""
    labels = {"hard": 0.0, "temperature": 1.0, "min_confidence": 0.7, "balance": 0.5}
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["finetune"]["pseudo"] |= {"epochs": 1, "labels": labels}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    make_pretrained(Path(), params, {"all": 0})
    seen = list[LabelledPool]()

    def learn(model: Any, pool: LabelledPool, *_: Any, **__: Any) -> None:
        seen.append(pool)
        raise Seen

    monkeypatch.setattr("stages.finetune.learn_pseudo_labels", learn)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with pytest.raises(Seen):
        run_stage("finetune", "--arch", "single_stream", "--fold", "0")
    (found,) = seen
    expected = pool(min_confidence=0.7, balance=0.5)
    assert found.videos.rows.tolist() == expected.videos.rows.tolist() != pool().videos.rows.tolist()
    assert found.epoch(0, 0).order_keys().tolist() == expected.epoch(0, 0).order_keys().tolist()
    assert isinstance(found.epoch(0, 0), ResampledVideos)


def test_the_phase_teaches_the_soft_labels_once(project, monkeypatch):
    model = fresh_student()
    before = divergence(model)
    learn(model)
    assert divergence(model) < before - 0.1
    kept = Path(".scratch/finetune@x-0") / PHASE
    report = read_json(kept / "metrics.json")
    assert report == {
        "ema": fold_data().score(fold_data().logits(model, torch.device("cpu"))),
        "videos": len(pool().videos),
    }
    monkeypatch.setattr(pseudo_phase, "train", None)  # a later start finds its weights
    again = fresh_student()
    learn(again)
    states = model.state_dict(), again.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_student_goes_on_from_the_average_of_the_phase(project, monkeypatch):
    """And so does one that starts later, from what is kept."""
    raw, average = fresh_student(), fresh_student()
    with torch.no_grad():
        average.head.out.weight.add_(1.0)
    monkeypatch.setattr(pseudo_phase, "train", lambda *_, **__: TrainResult(raw, average, [], []))
    for _ in range(2):
        model = fresh_student()
        learn(model)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in average.state_dict().items())
        monkeypatch.setattr(pseudo_phase, "train", None)


def test_both_label_blocks_are_stated_and_off(project):
    assert load(PretrainParams).labels == load(FinetuneParams).pseudo.labels == OFF
