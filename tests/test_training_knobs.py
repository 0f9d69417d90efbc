"""Knobs that trade time for memory, or a slow start for speed, change nothing that is computed.

pytest tests/test_training_knobs.py; the compiled ones with -m slow
"""

import shutil
from pathlib import Path

import pytest
import torch
from real_tasks import NAMES, real_task, train_real
from stores import make_project

from framefold.errors import UserError
from framefold.models.recomputation import Layers
from framefold.params.training import OptimizationParams
from framefold.training.loop import TrainResult, samples_of
from framefold.training.sharing import Share

VIDEO_TASKS = [name for name in NAMES if name != "adapt"]  # the tower is not ours
PARAMS = OptimizationParams(epochs=2, batch_size=7, weight_decay=0.01, warmup=0.2, max_grad_norm=1.0, ema_decay=0.9)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def trained(name: str, dropout: float, tokens: int | None = None) -> TrainResult:
    real = real_task(name, dropout=dropout, videos=21, tokens=tokens)
    return train_real(real, PARAMS, "knobs")


def kept_bytes(name: str) -> int:
    """What one forward pass with dropout keeps for the backward pass, weights left out."""
    real = real_task(name, dropout=0.1, videos=21)
    batch, kept = real.epochs(0)[0], {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.nbytes
        return tensor

    for module in real.task.model.modules():
        if isinstance(module, Layers):
            module.recompute = True
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        real.task.loss(batch, Share(samples_of(batch), samples_of(batch)))
    return sum(kept.values())


@pytest.mark.parametrize("name", VIDEO_TASKS)
def test_checkpointing_changes_no_weight(project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With dropout, and with FGM where labels are learned: the second computation sees what the first one saw."""
    expected = trained(name, dropout=0.1)
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINTING", "1")
    found = trained(name, dropout=0.1)
    assert found.history == expected.history
    for (key, one), other in zip(found.ema.state_dict().items(), expected.ema.state_dict().values(), strict=True):
        assert torch.equal(one, other), key


@pytest.mark.parametrize("name", VIDEO_TASKS)
def test_checkpointing_keeps_less(project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of a layer, its inputs alone: the knob that changes nothing at all would pass the test above."""
    with_knob = kept_bytes(name)
    monkeypatch.setattr(Layers, "run", lambda self, layer, *inputs: layer(*inputs))
    assert with_knob < 0.8 * kept_bytes(name)


def test_batch_statistics_are_of_the_whole_batch(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """micro_batch splits no batch that is normalised as one, as it does others."""
    expected, sizes = trained("classify dual_stream nextvlad", dropout=0.0), []
    monkeypatch.setenv("FRAMEFOLD_MICRO_BATCH", "3")
    found = trained("classify dual_stream nextvlad", dropout=0.0)
    for key, tensor in found.ema.state_dict().items():
        assert torch.equal(tensor, expected.ema.state_dict()[key]), key
    monkeypatch.setattr("framefold.training.loop.split", lambda batch, size: sizes.append(size) or [batch])
    trained("classify dual_stream nextvlad", dropout=0.0)
    trained("classify dual_stream", dropout=0.0)
    assert set(sizes) == {0, 3}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("remove_padding", ["0", "1"])
@pytest.mark.parametrize(
    "name",
    ["classify single_stream", "classify dual_stream nextvlad", "pretrain dual_stream", "pretrain_all dual_stream"],
)
def test_compiled_equals_eager(project: Path, monkeypatch: pytest.MonkeyPatch, name: str, remove_padding: str) -> None:
    """Losses with dropout to rounding, in batches of several shapes; weights keep their names."""
    monkeypatch.setenv("FRAMEFOLD_REMOVE_PADDING", remove_padding)
    monkeypatch.setattr("framefold.data.places.CPU_STEP", 4)  # else such small batches keep all their padding
    expected = trained(name, dropout=0.1, tokens=300)
    monkeypatch.setenv("FRAMEFOLD_COMPILE", "1")
    found = trained(name, dropout=0.1, tokens=300)
    assert list(found.model.state_dict()) == list(expected.model.state_dict())
    assert len(found.history) >= 6
    for number, (row, other) in enumerate(zip(found.history, expected.history, strict=True)):
        magnified = number and name.endswith("nextvlad")  # what steps are rounded by, by statistics of a few videos
        assert row == pytest.approx(other, rel=1e-2 if magnified else 1e-3, abs=1e-4)


def test_layers_that_run_twice_are_not_compiled(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler fails on some of them: refused before the work, not an hour into it."""
    monkeypatch.setenv("FRAMEFOLD_COMPILE", "1")
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINTING", "1")
    with pytest.raises(UserError, match="set one of them"):
        trained("classify single_stream", dropout=0.0)
