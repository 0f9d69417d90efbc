"""Every real training with two processes equals one process with the same global batches, dropout left out.

pytest tests/test_processes.py -m medium

Batches are of 7 and 15 samples: parts of processes differ in size. Gradients are compared
before clipping, at every step, not weights: AdamW makes a full step of a gradient that is nothing but rounding.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from real_tasks import NAMES, real_task, train_real
from stores import make_project

from framefold.models import normalization
from framefold.params.training import OptimizationParams
from framefold.training import loop, sharing

PARAMS = OptimizationParams(epochs=1, batch_size=7, weight_decay=0.01, warmup=0.2, max_grad_norm=1.0, ema_decay=0.9)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
NORMALISED = {
    "rtol": 1e-3,
    "atol": 3e-4,
}  # after the first step: statistics of 7 videos magnify what steps are rounded by
DUAL, QUEUE = "pretrain dual_stream", "pretrain_all dual_stream"
NEXTVLAD = "classify dual_stream nextvlad"
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
pytestmark = pytest.mark.medium

Result = dict[str, Any]  # gradients by name of each step, rows of the curve


def run(name: str, tokens: int | None) -> Result:
    """A training of five steps or so, in the current folder."""
    videos, size = (45, 15) if name.startswith("pretrain") else (35, 7)
    real = real_task(name, videos=videos, batch_size=size, tokens=tokens)
    names = {parameter: key for key, parameter in real.task.model.named_parameters()}
    gradients: list[dict[str, torch.Tensor]] = []
    clip = torch.nn.utils.clip_grad_norm_

    def keep(parameters: list[torch.nn.Parameter], *args: Any, **kwargs: Any) -> torch.Tensor:
        gradients.append({names[one]: one.grad.clone() for one in parameters if one.grad is not None})
        return clip(parameters, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.torch.nn.utils, "clip_grad_norm_", keep)
        result = train_real(real, PARAMS, "ranks")
    return {"gradients": gradients, "history": result.history}


def local_counts(self: sharing.Share, counts: Any) -> tuple[torch.Tensor, ...]:
    """The planted defect: means over a process's own tokens, frames and videos."""
    return tuple(count.float().clamp(min=1) for count in counts)


def own_part(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
    """The planted defect: what other processes want of a row is lost."""
    return gradient.chunk(2)[torch.distributed.get_rank()], None


def local_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The planted defect: statistics of a process's own frames."""
    return tensor


def own_gradient(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
    """The planted defect: what other processes want of the statistics is lost."""
    return gradient


def by_rank(self: sharing.Share, rows: torch.Tensor) -> torch.Tensor:
    """The planted defect: videos join the queue process by process."""
    return self.gather(rows.detach())[: self.total]


DEFECTS = {
    "counts": (DUAL, sharing.Share, "totals", local_counts),
    "gradients": (DUAL, sharing._Gather, "backward", staticmethod(own_part)),
    "order": (QUEUE, sharing.Share, "gather_in_order", by_rank),
    "statistics": (NEXTVLAD, normalization, "over_processes", local_sum),
    "gradients of statistics": (NEXTVLAD, normalization._SumOverProcesses, "backward", staticmethod(own_gradient)),
}
CASES = [*((name, None, "") for name in NAMES), (DUAL, 400, "")]
CASES += [(name, None, defect) for defect, (name, *_) in DEFECTS.items()]


def main() -> None:
    """What each of two processes does."""
    results = {}
    for name, tokens, defect in CASES:
        with pytest.MonkeyPatch.context() as patch:
            if defect:
                patch.setattr(*DEFECTS[defect][1:])
            results[f"{name} {tokens} {defect}"] = run(name, tokens)
    if os.environ["RANK"] == "0":
        torch.save(results, "two.pt")


def compare(found: Result, expected: Result, later: dict[str, float] = TOLERANCE) -> None:
    """later: tolerance after the first step."""
    assert len(found["gradients"]) == len(expected["gradients"]) >= 3
    for step, (one, other) in enumerate(zip(found["gradients"], expected["gradients"], strict=True)):
        torch.testing.assert_close(one, other, **(later if step else TOLERANCE))
    for number, (row, other) in enumerate(zip(found["history"], expected["history"], strict=True)):
        tolerance = (later if number else TOLERANCE)["rtol"]
        assert row == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Result]]:
    """All cases as two processes compute them; the tests compute them alone, in the same folder."""
    folder = tmp_path_factory.mktemp("processes")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("FRAMEFOLD_DEVICE", "cpu")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("DVC_ROOT", raising=False)
        subprocess.run([sys.executable, *LAUNCHER, __file__], check=True, timeout=600)
        yield torch.load("two.pt", weights_only=True)


@pytest.mark.parametrize(("name", "tokens"), [(name, tokens) for name, tokens, defect in CASES if not defect])
def test_two_processes_give_one_process(together: dict[str, Result], name: str, tokens: int | None) -> None:
    """Gradients, losses and accuracies of every step; every task and objective, and batches cut by a token budget."""
    later = NORMALISED if name.endswith("nextvlad") else TOLERANCE
    compare(together[f"{name} {tokens} "], run(name, tokens), later)


@pytest.mark.parametrize("defect", DEFECTS)
def test_what_is_not_shared_is_caught(together: dict[str, Result], defect: str) -> None:
    name = DEFECTS[defect][0]
    with pytest.raises(AssertionError):
        compare(together[f"{name} None {defect}"], run(name, None), NORMALISED if name == NEXTVLAD else TOLERANCE)


if __name__ == "__main__":
    main()
