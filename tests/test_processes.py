"""Every real training with two processes equals one process with the same global batches, dropout left out.

pytest tests/test_processes.py -m medium

Batches are of 7 and 15 samples: parts of processes differ in size. A run is launched once for all tasks; gradients are
compared before clipping, at every step, since AdamW makes a step of full size of a gradient that is only rounding.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from real_tasks import NAMES, real_task
from stores import make_project

from framefold.params.training import OptimizationParams
from framefold.scratch import Scratch
from framefold.training import loop, sharing
from framefold.training.loop import train

PARAMS = OptimizationParams(epochs=1, batch_size=7, weight_decay=0.01, warmup=0.2, max_grad_norm=1.0, ema_decay=0.9)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
pytestmark = pytest.mark.medium

Result = dict[str, Any]  # gradients by name of each step, rows of the curve


def run(name: str, tokens: int | None = None) -> Result:
    """A training of five steps or so, in the current folder."""
    videos, size = (45, 15) if name.startswith("pretrain") else (35, 7)
    real = real_task(name, videos=videos, batch_size=size, tokens=tokens)
    names = {parameter: key for key, parameter in real.task.model.named_parameters()}
    gradients: list[dict[str, torch.Tensor]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def keep(parameters: list[torch.nn.Parameter], *args: Any, **kwargs: Any) -> torch.Tensor:
        gradients.append({names[one]: one.grad.clone() for one in parameters if one.grad is not None})
        return clip(parameters, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, Scratch("ranks", {}) as scratch:
        patch.setattr(loop.torch.nn.utils, "clip_grad_norm_", keep)
        result = train(
            real.task,
            real.epochs,
            PARAMS,
            learning_rates=real.learning_rates,
            seed=0,
            precision="fp32",
            scratch=scratch,
            adversarial=real.adversarial,
        )
        scratch.finish()
    return {"gradients": gradients, "history": result.history}


def local_counts(self: sharing.Share, counts: Any) -> tuple[torch.Tensor, ...]:
    """The planted defect: means over a process's own tokens, frames and videos."""
    return tuple(count.float().clamp(min=1) for count in counts)


def main(names: list[str], defect: str = "", tokens: int | None = None) -> None:
    if defect == "counts":
        sharing.Share.totals = local_counts  # type: ignore[method-assign]
    if defect == "gradients":
        sharing._Gather.backward = staticmethod(own_part)  # type: ignore[method-assign]
    results = {name: run(name, tokens) for name in names}
    if os.environ["RANK"] == "0":
        torch.save(results, "two.pt")


def own_part(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    """The planted defect: what other processes want of a row is lost."""
    return gradient.chunk(2)[torch.distributed.get_rank()], None


def together(names: list[str], **arguments: Any) -> dict[str, Result]:
    """The same trainings by two processes."""
    environment = {**os.environ, "FRAMEFOLD_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *LAUNCHER, __file__, json.dumps({"names": names, **arguments})]
    subprocess.run(command, env=environment, check=True, timeout=300)
    return torch.load("two.pt", weights_only=True)


def compare(found: Result, expected: Result) -> None:
    assert len(found["gradients"]) == len(expected["gradients"]) >= 3
    for one, other in zip(found["gradients"], expected["gradients"], strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)
    for row, other in zip(found["history"], expected["history"], strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_two_processes_give_one_process(project: Path) -> None:
    """Gradients, losses and accuracies of every step, for every task and objective."""
    found = together(NAMES)
    for name in NAMES:
        compare(found[name], run(name))


def test_two_processes_give_one_process_with_a_token_budget(project: Path) -> None:
    name = "pretrain dual_stream"
    compare(together([name], tokens=400)[name], run(name, tokens=400))


@pytest.mark.parametrize("defect", ["counts", "gradients"])
def test_what_is_not_shared_is_caught(project: Path, defect: str) -> None:
    name = "pretrain dual_stream"
    found, expected = together([name], defect=defect)[name], run(name)
    with pytest.raises(AssertionError):
        compare(found, expected)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
