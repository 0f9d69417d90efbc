"""What a training leaves are the weights of its EMA, not the raw ones: pytest tests/test_kept_weights.py"""

from pathlib import Path

import numpy as np
import pytest
import torch
from stores import CATEGORIES, DIM, VOCAB, make_project, write_soft_labels
from test_pseudo_phase import fold_data
from torch import nn

from framefold.models.registry import build_model
from framefold.models.weights import read_state_dict
from framefold.params.base import load
from framefold.params.finetune import CheckpointParams, FinetuneParams
from framefold.params.models import SingleStreamParams, StudentParams
from framefold.params.pretrain import PretrainParams
from framefold.rounds import Round
from framefold.scratch import Scratch
from framefold.storage import read_json
from framefold.training.held_out import measure
from framefold.training.loop import TrainResult
from framefold.training.pool import Pool, open_pool
from framefold.training.views import masking_of
from stages import finetune, pretrain

HISTORY = [{"epoch": 0, "step": 1, "lr": 0.1, "loss": 1.0}]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path)
    write_soft_labels(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    monkeypatch.delenv("DVC_ROOT", raising=False)


def student(label: int) -> nn.Module:
    """It calls every video `label`."""
    shape = VOCAB, DIM, len(CATEGORIES)
    model = build_model("single_stream", load(StudentParams).text, load(SingleStreamParams), *shape).eval()
    model.head.out.weight.data.zero_()
    model.head.out.bias.data.copy_(torch.eye(len(CATEGORIES))[label])
    return model


def same(path: Path, model: nn.Module) -> bool:
    saved, state = read_state_dict(path), model.state_dict()
    return saved.keys() == state.keys() and all(torch.equal(saved[name], state[name]) for name in state)


def test_finetuning_keeps_the_averages_of_the_epochs_whose_average_is_best() -> None:
    """The raw weights are best in epoch 0, their average in epoch 1; epoch 2 is the last one."""
    data = fold_data()
    worst, *_, best = np.argsort(np.bincount(data.validation.labels, minlength=len(CATEGORIES))).tolist()
    raws, averages = ([student(label) for label in labels] for labels in ((best, worst, worst), (worst, best, worst)))
    params = load(FinetuneParams).model_copy(update={"checkpoints": CheckpointParams(keep=1, select="top")})
    with Scratch("finetune@x-0", {}) as scratch:
        judge = finetune.judge(data, None, scratch)
        epochs = [judge(epoch, raw, ema) for epoch, (raw, ema) in enumerate(zip(raws, averages, strict=True))]
        result = TrainResult(raws[-1], averages[-1], HISTORY, epochs)
        finetune.publish(Path("kept"), result, params, data, {}, scratch)
    assert [path.name for path in Path("kept").glob("*.safetensors")] == ["epoch-1.safetensors"]
    assert same(Path("kept/epoch-1.safetensors"), averages[1])


def pretrained() -> tuple[TrainResult, Pool, PretrainParams]:
    """Two students who call every video the first class and the last one."""
    params, own = load(PretrainParams), load(StudentParams)
    pool = open_pool(own, Round(None).pseudo, None, params.labels, 20, 0)
    models = [pretrain.build("single_stream", params, own, load(SingleStreamParams), pool) for _ in range(2)]
    for model, label in zip(models, (0, -1), strict=True):
        model.backbone = student(label)
    return TrainResult(*models, HISTORY, []), pool, params


def test_pretraining_keeps_and_measures_the_average() -> None:
    result, pool, params = pretrained()
    with Scratch("pretrain@x", {}) as scratch:
        pretrain.keep(Path("kept"), result, pool, params, {"teacher": 1}, scratch)
    assert same(Path("kept/model.safetensors"), result.ema.backbone)
    masking = masking_of(params.masking, pool.held_out)
    reports = [measure(model, pool.held_out, masking, CPU) for model in (result.model, result.ema)]
    assert reports[0] != reports[1]
    assert read_json("kept/metrics.json").items() >= reports[1].items()
    assert read_json("kept/origin.json") == {"teacher": 1}
