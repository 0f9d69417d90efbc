"""Statistics of batch normalisation after weight averaging: what they are computed from, and that it is done.

pytest tests/test_batch_statistics.py
"""

import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from stores import CATEGORIES, DIM, VOCAB, make_project, small_params
from torch import Tensor, nn

from framefold.data.folds import HOLDOUT
from framefold.data.videos import open_labeled, open_videos
from framefold.inference.batch_statistics import recompute_statistics
from framefold.inference.fold_models import AVERAGE, COPIED, Predictor, average_folds, last_checkpoints
from framefold.models.normalization import MaskedBatchNorm
from framefold.models.registry import architecture, build_model, load_model, save_config
from framefold.models.weights import read_state_dict, save_weights
from framefold.params.base import load
from framefold.params.models import StudentParams
from framefold.storage import sha256_of

Batch = dict[str, Tensor]
LAST_TWO = partial(last_checkpoints, last=2)


class TwoLayers(nn.Module):
    """The second layer sees what the first one made of a state, in training at random."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = MaskedBatchNorm(3), MaskedBatchNorm(3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch: Batch) -> Tensor:
        states = self.first(batch["states"], batch["mask"]).exp()
        return self.second(self.dropout(states).sum(1), batch["mask"].any(1))


def videos(count: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(count, 4, generator=generator) < 0.5
    states = 5 + 3 * torch.randn(count, 4, 3, generator=generator)
    return {"states": states.masked_fill(~mask.unsqueeze(-1), float("nan")), "mask": mask}


def cut(batch: Batch, sizes: Iterable[int]) -> list[Batch]:
    parts = {name: tensor.split(list(sizes)) for name, tensor in batch.items()}
    return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]


def test_statistics_are_those_of_all_states_by_hand() -> None:
    """The first layer's from the kept states, the second's from what it then sees; no batch, no dropout in them."""
    model, batch = TwoLayers().eval(), videos(40)
    recompute_statistics(model, lambda: cut(batch, (17, 20, 3)))
    states, mask = batch["states"].double().numpy(), batch["mask"].numpy()
    kept = states[mask]
    mean, var = kept.mean(0), kept.var(0, ddof=1)
    seen = np.where(mask[..., None], (states - mean) / np.sqrt(var + 1e-5), 0)
    second = np.exp(seen).sum(1)[mask.any(1)]  # masked places come out of the first layer as zeros
    for layer, own in ((model.first, kept), (model.second, second)):
        np.testing.assert_allclose(layer.running_mean, own.mean(0), rtol=1e-5)
        np.testing.assert_allclose(layer.running_var, own.var(0, ddof=1), rtol=1e-5)


def test_statistics_depend_on_no_batch_and_no_state_before() -> None:
    results = []
    for sizes, value in (((40,), 0.0), ((1, 30, 9), 7.0)):
        model = TwoLayers().eval()
        for buffer in model.buffers():
            buffer.fill_(value)
        recompute_statistics(model, lambda sizes=sizes: cut(videos(40), sizes))
        results.append(model.state_dict())
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_a_layer_that_sees_nothing_keeps_its_statistics() -> None:
    model = TwoLayers().eval()
    batch = videos(5) | {"mask": torch.zeros(5, 4, dtype=torch.bool)}
    recompute_statistics(model, lambda: [batch])
    assert model.state_dict()["first.running_var"].tolist() == [1.0] * 3


# Of the averages of folds


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def averaged(project: Path, pooling: str) -> tuple[Predictor, Path]:
    """The average of fold 0 of a single_stream whose frames are pooled so, and the predictor that made it."""
    params = small_params()
    params["models"]["single_stream"]["pooling"]["frames"] = pooling
    make_project(project, params)
    noisy_checkpoints(project / "source")
    labeled, student = open_videos("labeled", "small"), load(StudentParams)
    stores = labeled, open_videos("test", "small"), open_labeled(labeled)
    predictor = Predictor(*stores, student.inputs, 16, torch.device("cpu"), lambda: None, project / "blocks")
    average_folds({0: project / "source"}, {0: project / "target"}, LAST_TWO, predictor.average)
    return predictor, project / "target" / AVERAGE


def noisy_checkpoints(folder: Path) -> None:
    """Two checkpoints of a student whose statistics are of no use."""
    torch.manual_seed(0)
    params = load(architecture("single_stream").Params, "models.single_stream")
    model = build_model("single_stream", load(StudentParams).text, params, VOCAB, DIM, len(CATEGORIES))
    folder.mkdir()
    save_config(folder, model)
    for name in COPIED:
        (folder / name).write_text("")
    for epoch in (0, 1):
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.data + 0.1 * torch.rand_like(tensor)
        save_weights(folder / f"epoch-{epoch}.safetensors", model)


def checkpoints(project: Path) -> list[dict[str, Tensor]]:
    return [read_state_dict(project / f"source/epoch-{epoch}.safetensors") for epoch in (0, 1)]


@torch.no_grad()
def test_an_average_has_the_statistics_of_its_training_videos(project: Path) -> None:
    """Those of the fold's training frames under the mean weights, here in one forward pass over all these videos."""
    predictor, folder = averaged(project, "nextvlad")
    model, fold = load_model(folder), predictor.folds.fold
    rows, seen = np.flatnonzero((fold != 0) & (fold != HOLDOUT)), {}
    batch = predictor.labeled.dataset(rows, predictor.inputs).batch(np.arange(len(rows)))
    norms = {"assign_norm": batch["frame_mask"], "sums_norm": batch["frame_mask"].any(1)}
    for name in norms:
        layer = getattr(model.frame_pooling, name)
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    model(batch)
    for name, mask in norms.items():
        layer, states = getattr(model.frame_pooling, name), seen[name][mask]
        torch.testing.assert_close(layer.running_mean, states.mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.running_var, states.var(0), rtol=1e-3, atol=1e-7)


def test_an_average_is_the_mean_of_the_weights_and_the_same_bytes_again(project: Path) -> None:
    predictor, folder = averaged(project, "nextvlad")
    first, (one, other) = read_state_dict(folder / "model.safetensors"), checkpoints(project)
    for name, tensor in first.items():
        if "running" not in name:
            torch.testing.assert_close(tensor, (one[name] + other[name]) / 2)
    digest = sha256_of(folder / "model.safetensors")
    shutil.rmtree(folder)
    average_folds({0: project / "source"}, {0: folder.parent}, LAST_TWO, predictor.average)
    assert sha256_of(folder / "model.safetensors") == digest


def test_statistics_draw_no_random_numbers(project: Path) -> None:
    """Dropout is off while statistics are gathered."""
    predictor, _ = averaged(project, "nextvlad")
    predictor.average(0, project / "source", ["epoch-0.safetensors"])
    state = torch.get_rng_state()
    model = predictor.average(0, project / "source", ["epoch-0.safetensors"])
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training


def test_a_model_without_statistics_is_only_averaged(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs not a single video read."""
    monkeypatch.delattr(Predictor, "training_batches")
    _, folder = averaged(project, "mean")
    one, other = checkpoints(project)
    for name, tensor in read_state_dict(folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2)
