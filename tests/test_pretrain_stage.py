"""The stage pretrain trains as params say, on batches and labels looked at where training would begin:
pytest tests/test_pretrain_stage.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import CATEGORIES, make_project, small_params, write_soft_labels
from test_views import likeness, without_text
from tiny_project import run_stage

from framefold.data.batches import Batch
from framefold.data.videos import open_videos
from framefold.training.sharing import Share


class Seen(Exception):
    """What the stage trains on is known; training itself is not needed."""


def trained_on(root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[Any, list[Batch]]:
    """The stage's task, and the batches of its first epoch, with these `changes` of values and groups of pretrain."""
    params = small_params()
    for name, change in changes.items():
        params["pretrain"][name] = params["pretrain"][name] | change if isinstance(change, dict) else change
    make_project(root, params)
    write_soft_labels(root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    seen = list[Any]()

    def train(task: Any, epochs: Any, *_: Any, **__: Any) -> None:
        seen.extend([task, *map(epochs(0).__getitem__, range(len(epochs(0))))])
        raise Seen

    monkeypatch.setattr("stages.pretrain.train", train)
    with pytest.raises(Seen):
        run_stage("pretrain", "--arch", "single_stream")
    return seen[0], seen[1:]


@pytest.mark.parametrize(("rate", "frame_rate"), [(0.1, 0.5), (0.6, 0.15)])
def test_the_stage_hides_as_much_as_params_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, frame_rate: float
) -> None:
    """Of ordinary tokens and of frames, over an epoch; a text or a video hides a whole number of them."""
    _, batches = trained_on(tmp_path, monkeypatch, masking={"rate": rate, "frame_rate": frame_rate})
    special = torch.tensor(open_videos("unlabeled", "small").special.ids)
    tokens = sum(int((batch["text_mask"] & ~torch.isin(batch["input_ids"], special)).sum()) for batch in batches)
    frames = sum(int(batch["frame_mask"].sum()) for batch in batches)
    assert sum(len(batch["token_places"]) for batch in batches) / tokens == pytest.approx(rate, abs=0.05)
    assert sum(len(batch["frame_places"]) for batch in batches) / frames == pytest.approx(frame_rate, abs=0.08)


def test_the_stage_shows_hard_pairs_as_params_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for hard in (0.0, 1.0):
        mismatched = {"hard": hard, "temperature": 0.02}
        _, (batch, *_) = trained_on(tmp_path / str(hard), monkeypatch, batch_size=64, mismatched=mismatched)
        found.append(likeness(batch))
    assert found[0] + 0.3 < found[1]


def test_the_stage_learns_the_teachers_labels_as_params_use_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a batch by hand: half hard, half at temperature 2, sure labels alone, balanced weights."""
    labels = {"hard": 0.5, "temperature": 2.0, "min_confidence": 0.7, "balance": 1.0}
    task, batches = trained_on(tmp_path, monkeypatch, labels=labels)
    stored = np.load("data/pseudo/soft.npy").astype(np.float64)
    rows = np.concatenate([batch["row"].numpy() for batch in batches])
    sure = stored.max(1) >= 0.7 * stored.sum(1)
    sure &= stored.any(1)
    sizes = np.bincount(stored[rows][sure[rows]].argmax(1), minlength=len(CATEGORIES))
    weights = sizes.sum() / (sizes > 0).sum() / np.maximum(sizes, 1)
    for batch in batches:
        soft, own = stored[batch["row"].numpy()], sure[batch["row"].numpy()]
        _, parts = task.model.eval()(batch, Share(len(own), len(own)))
        logits = task.model.backbone(batch).detach().double()
        p = np.sqrt(soft[own]) / np.sqrt(soft[own]).sum(1, keepdims=True)
        best, log_q = soft[own].argmax(1), torch.log_softmax(logits, -1).numpy()[own]
        flat = -(p * torch.log_softmax(logits / 2, -1).numpy()[own]).sum(1)
        each = weights[best] * (0.5 * 4 * flat - 0.5 * log_q[np.arange(len(best)), best])
        assert 0 < own.sum() < soft.any(1).sum()
        assert float(parts["loss_distillation"]) == pytest.approx(each.sum() / soft.any(1).sum(), rel=2e-3)


@pytest.mark.parametrize(("text", "frames"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)])
def test_the_stage_trains_on_views_with_the_drops_of_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: float, frames: float
) -> None:
    """Of videos that have both modalities, over an epoch."""
    _, seen = trained_on(tmp_path, monkeypatch, masking={"text_drop": text, "frames_drop": frames})
    counts = open_videos("unlabeled", "small").features.counts  # of frames; everyone has a title
    both = np.concatenate([counts[batch["row"]] > 0 for batch in seen])
    no_text = torch.cat([without_text(batch) for batch in seen]).numpy()[both]
    no_frames = torch.cat([~batch["frame_mask"].any(1) for batch in seen]).numpy()[both]
    assert len(no_text) > 80
    assert no_text.mean() == pytest.approx(text, abs=0.1 if text else 0)
    assert no_frames.mean() == pytest.approx(frames, abs=0.1 if frames else 0)
