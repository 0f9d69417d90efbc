"""The training loop: interrupted = uninterrupted, to the byte; what it does with bad losses and small memory.

pytest tests/test_loop_resume.py
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.params.training import AdversarialParams, OptimizationParams
from framefold.scratch import OrphanedError, Scratch
from framefold.training import loop
from framefold.training.curves import write_curves
from framefold.training.loop import TrainResult, split, train
from framefold.training.sharing import Share

STEPS, SIZE, EPOCHS = 6, 8, 3


class Toy(nn.Module):
    """Every kind of state: embeddings, dropout, and buffers of both types (running statistics, a counter)."""

    def __init__(self, dropout: float):
        super().__init__()
        self.word_embeddings = nn.Embedding(50, 8)
        self.norm = nn.BatchNorm1d(8) if dropout else nn.Identity()
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(8, 4)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.dropout(self.norm(self.word_embeddings(batch["input_ids"]).mean(1))))


class ToyTask:
    def __init__(self, seed: int = 0, dropout: float = 0.3):
        torch.manual_seed(seed)
        self.model: nn.Module = Toy(dropout)

    def loss(self, batch: dict[str, Tensor], share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        loss = nn.functional.cross_entropy(self.model(batch), batch["label"])
        return loss, {"loss_label": loss}

    def role_of(self, name: str) -> str:
        return "text" if name.startswith("word_embeddings") else "head"


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


class ToyBatches:
    """Batch i of an epoch depends on (epoch, i) alone. `die_at`: (epoch, i) at which the run is killed."""

    def __init__(self, epoch: int, die_at: tuple[int, int] | None = None, pause: float = 0.0):
        self.epoch, self.die_at, self.pause, self.part = epoch, die_at, pause, (0, 1)

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if (self.epoch, index) == self.die_at:
            raise Killed
        time.sleep(self.pause)
        draw = torch.Generator().manual_seed(1000 * self.epoch + index)
        ids = torch.randint(0, 50, (SIZE, 5), generator=draw)
        row = torch.arange(SIZE) + SIZE * index
        rank, world = self.part
        return {name: tensor[rank::world] for name, tensor in {"row": row, "input_ids": ids, "label": row % 4}.items()}

    def global_size(self, index: int) -> int:
        return SIZE

    def names(self, index: int) -> list[str]:
        rank, world = self.part
        return [f"v{row}" for row in range(SIZE * index, SIZE * (index + 1))][rank::world]

    def shard(self, rank: int, world: int) -> "ToyBatches":
        self.part = (rank, world)
        return self


def run(
    task: ToyTask | None = None,
    method: str = "fgm",
    ema_decay: float = 0.9,
    die_at: tuple[int, int] | None = None,
    die_after: int | None = None,
    pause: float = 0.0,
) -> TrainResult:
    """One training in the current folder, as a stage does it; `die_after`: the epoch whose evaluation is killed."""
    params = OptimizationParams(
        epochs=EPOCHS, batch_size=SIZE, weight_decay=0.01, warmup=0.2, max_grad_norm=1.0, ema_decay=ema_decay
    )
    attack = AdversarialParams(method=method, epsilon=0.5, alpha=0.3, steps=2)

    def evaluate(epoch: int, model: nn.Module, ema: nn.Module) -> dict:
        if epoch == die_after:
            raise Killed
        assert not model.training
        assert not ema.training
        return {"epoch": epoch, "noise": torch.rand(1).item(), "weight": ema.head.weight.sum().item()}

    with Scratch("toy@0", {"params": "same"}) as scratch:
        return train(
            task or ToyTask(),
            lambda epoch: ToyBatches(epoch, die_at, pause),
            params,
            learning_rates={"head": 0.01, "text": 0.02},
            seed=0,
            precision="fp32",
            scratch=scratch,
            adversarial=attack,
            after_epoch=evaluate,
        )


def content(result: TrainResult) -> tuple:
    """Everything a stage publishes, as bytes and plain values."""
    states = [*result.model.state_dict().items(), *result.ema.state_dict().items()]
    return [(name, tensor.numpy().tobytes()) for name, tensor in states], result.history, result.epochs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project; the state is saved after every step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINT_SECONDS", "0")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def drop_scratch() -> None:
    shutil.rmtree(".scratch")


@pytest.mark.parametrize("method", ["none", "fgm", "pgd"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_interrupted_equals_uninterrupted(folder: Path, method: str, ema_decay: float) -> None:
    """Killed in mid-epoch, between epochs and in the evaluation, a run ends with the bytes of an unbroken one."""
    whole = content(run(method=method, ema_decay=ema_decay))
    drop_scratch()
    deaths = [{"die_at": (0, 2)}, {"die_after": 0}, {"die_at": (1, 0)}, {"die_at": (2, 5)}]
    for death in deaths:
        with pytest.raises(Killed):
            run(method=method, ema_decay=ema_decay, **death)
    assert content(run(ToyTask(seed=9), method, ema_decay)) == whole  # resuming goes before the weights that came in


@pytest.mark.parametrize("defect", ["rng", "ema", "optimizer", "position"])
def test_check_catches_a_state_that_is_not_restored(folder: Path, monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    """Planted defects: each part of the state, left out, changes the bytes, so the test above would fail."""
    whole = content(run())
    drop_scratch()
    with pytest.raises(Killed):
        run(die_at=(1, 2))
    nothing = {
        "rng": (loop, "restore_rng", lambda state: None),
        "ema": (loop.ExponentialAverage, "load_state_dict", lambda self, state: None),
        "optimizer": (torch.optim.AdamW, "load_state_dict", lambda self, state: None),
        "position": (loop, "Position", lambda **saved: loop_position(**{**saved, "batch": 0})),
    }
    loop_position = loop.Position
    monkeypatch.setattr(*nothing[defect])
    assert content(run()) != whole


def start_process(**arguments: object) -> subprocess.Popen:
    command = [sys.executable, __file__, json.dumps(arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")})


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def test_killed_process_resumes_to_the_same_bytes(folder: Path) -> None:
    """SIGKILL at an arbitrary instant after some checkpoints; the next process ends with the same bytes."""
    whole = content(run())
    drop_scratch()
    process = start_process(pause=0.05)
    wait_for(lambda: list(folder.glob(".scratch/toy@0/checkpoint-00000[4-9]*")))
    process.kill()
    process.wait()
    assert list(folder.glob(".scratch/toy@0/checkpoint-*"))
    assert content(run()) == whole


def test_sigterm_saves_and_exits_143(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM between two saves loses nothing: the state is written before the process ends, with a code != 0."""
    whole = content(run())
    drop_scratch()
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINT_SECONDS", "3600")
    process = start_process(pause=0.3)
    wait_for((folder / ".scratch/toy@0/stamp.json").exists)
    time.sleep(0.7)  # some steps
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert len(list(folder.glob(".scratch/toy@0/checkpoint-*"))) == 1
    assert content(run()) == whole


def test_orphan_saves_and_stops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When dvc has gone, the training ends with its progress kept, for the next `dvc repro` to go on from."""
    whole = content(run())
    drop_scratch()
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINT_SECONDS", "3600")
    answers = iter([False] * 4)
    with monkeypatch.context() as patch:
        patch.setattr("framefold.scratch.PARENT_SECONDS", 0.0)
        patch.setattr("framefold.parent.ParentWatch.gone", lambda self: next(answers, True))
        with pytest.raises(OrphanedError):
            run()
    assert len(list(folder.glob(".scratch/toy@0/checkpoint-*"))) == 1
    assert content(run()) == whole


@pytest.mark.parametrize("method", ["none", "fgm", "pgd"])
def test_micro_batches_give_the_whole_batch(folder: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The micro-batch is a matter of memory: without dropout the weights come out the same, uneven parts included."""
    whole = run(ToyTask(dropout=0.0), method)
    drop_scratch()
    monkeypatch.setenv("FRAMEFOLD_MICRO_BATCH", "3")
    parts = run(ToyTask(dropout=0.0), method)
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    for row, expected in zip(parts.history, whole.history, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)


def test_tasks_that_compare_samples_are_never_split(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In-batch negatives come from the whole batch whatever micro_batch says."""
    seen = set()

    class Comparing(ToyTask):
        whole_batch = True

        def loss(self, batch: dict[str, Tensor], share: Share) -> tuple[Tensor, dict[str, Tensor]]:
            seen.add(len(batch["label"]))
            return super().loss(batch, share)

    monkeypatch.setenv("FRAMEFOLD_MICRO_BATCH", "3")
    run(Comparing())
    assert seen == {SIZE}


class Poisoned(ToyTask):
    """The loss is not a number on batch 3."""

    def loss(self, batch: dict[str, Tensor], share: Share) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = super().loss(batch, share)
        return (loss * float("nan"), parts) if batch["row"][0] == 3 * SIZE else (loss, parts)


def test_loss_that_is_not_a_number(folder: Path) -> None:
    """The error names step, samples and a way out, and the good checkpoint before it can be gone on from."""
    names = ", ".join(f"v{row}" for row in range(24, 32))
    expected = rf"^toy@0: not finite at step 4 \(epoch 0, batch 3\): [^\n]*learning rate[^\n]*samples {names}$"
    with pytest.raises(UserError, match=expected):
        run(Poisoned())
    resumed = content(run())
    drop_scratch()
    assert resumed == content(run())


def test_curve_has_fixed_rows_and_no_timings(folder: Path) -> None:
    """curves.csv depends on the training alone: one row per so many steps, the learning rate ending near zero."""
    history = run().history
    write_curves("curves.csv", history)
    lines = Path("curves.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,lr,loss,loss_label,grad_norm"
    assert len(lines) - 1 == EPOCHS * STEPS
    assert history[0]["lr"] < max(row["lr"] for row in history) == 0.01
    assert history[-1]["lr"] < 0.0005


def test_an_epoch_that_is_cut_otherwise_is_not_gone_on_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a token budget the number of processes decides where batches end: batch 3 would be another one."""
    with pytest.raises(Killed):
        run(die_at=(1, 3))
    monkeypatch.setattr(ToyBatches, "__len__", lambda self: STEPS - 1)
    with pytest.raises(UserError, match=r"toy@0: interrupted in an epoch of 6 batches, which has 5 in 1 processes"):
        run()


def test_split_keeps_every_sample_once() -> None:
    batch = {"a": torch.arange(7), "b": torch.arange(14).view(7, 2)}
    parts = split(batch, 3)
    assert [len(part["a"]) for part in parts] == [3, 3, 1]
    assert torch.cat([part["b"] for part in parts]).equal(batch["b"])
    assert split(batch, 0) == [batch]


@pytest.mark.medium
def test_two_processes_give_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data parallelism does not change the result: two ranks without dropout against one."""
    alone = run(ToyTask(dropout=0.0))
    drop_scratch()
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINT_SECONDS", "3600")
    two_processes(dropout=0.0, save="two.pt")
    together = torch.load("two.pt", weights_only=True)
    for name, tensor in alone.ema.state_dict().items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.medium
def test_loss_of_one_process_that_is_not_a_number_stops_both(folder: Path) -> None:
    """Both say the same: the step and the samples of the one whose loss was bad. The checkpoint before it is whole."""
    two_processes(poisoned=True)
    said = [Path(f"said-{rank}.txt").read_text() for rank in range(2)]
    assert said[0] == said[1]
    assert "step 4 (epoch 0, batch 3)" in said[0]
    assert said[0].endswith("samples v24, v26, v28, v30")
    (path,) = folder.glob(".scratch/toy@0/checkpoint-*")
    state = torch.load(path, weights_only=True)
    assert state["position"]["step"] == 3
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def two_processes(**arguments: object) -> None:
    """`main` under torchrun, in the current folder."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    environment = {**os.environ, "FRAMEFOLD_DEVICE": "cpu"}
    command = [sys.executable, *launcher, __file__, json.dumps(arguments)]
    subprocess.run(command, env=environment, check=True, timeout=120)


def main(dropout: float = 0.3, save: str = "", pause: float = 0.0, poisoned: bool = False) -> None:
    if poisoned:
        loop.AGREE_STEPS = 1
        with pytest.raises(UserError) as caught:
            run(Poisoned())
        Path(f"said-{os.environ['RANK']}.txt").write_text(str(caught.value))
        return
    result = run(ToyTask(dropout=dropout), pause=pause)
    if save and os.environ.get("RANK", "0") == "0":
        torch.save(result.ema.state_dict(), save)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
