"""Adapting an encoder: which pairs it may see, that it resumes exactly, and that it helps.

pytest tests/test_adapt_clip.py; the medium tests with -m medium
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed
import torch.multiprocessing
import yaml
from mini_root import MiniRoot, jpeg
from test_extract_frames import write_archives

from framefold.data import pairs
from framefold.data.batches import EpochBatches
from framefold.data.folds import HOLDOUT
from framefold.data.images import read_encoder_config
from framefold.data.manifest import SplitManifest, write_manifest
from framefold.data.pairs import PairSamples, usable_rows
from framefold.data.tokens import TokenStore
from framefold.data.videos import open_labeled
from framefold.data.workers import WorkerPool
from framefold.evaluation import frames_probe
from framefold.models.vision import load_encoder, load_vision_encoder
from framefold.params.base import load
from framefold.params.encoders import EncoderParams
from framefold.scratch import Scratch
from framefold.storage import read_json
from framefold.training.sharing import Share
from stages import adapt_clip, extract_frames, ingest, split, tokenize

SMALL = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}}
TRAINING = {"epochs": 2, "batch_size": 12, "max_tokens": 8, "embed_dim": 8}
ROOT = Path(__file__).parents[1]
TARGET = Path("models/clip/small")


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def run(stage: Any, *arguments: str) -> None:
    sys.argv = [stage.__name__, *arguments]
    stage.main()


def adapt() -> None:
    run(adapt_clip, "--encoder", "small")


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    """Samples, folds and tokens of 24 labelled and 44 unlabelled videos; some of these duplicate others."""
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    mini = MiniRoot(tmp_path, monkeypatch).fill(labeled=24, others=40)
    for original in (*mini.records["labeled"][:12], *mini.records["test"][:2]):
        number = int(original["id"]) - 18_000_000_000_000_000_000
        frames = [jpeg(2 * number), jpeg(2 * number + 1)]
        mini.add("unlabeled", frames=frames, title=original["title"])
    mini.add("unlabeled", frames=[])
    mini.add("unlabeled", title="")
    adapt = {f"encoders__small__adapt__{key}": value for key, value in TRAINING.items()}
    mini.finish(encoders__small__config=SMALL, text__max_unknown=1.0, split__holdout=0.3, precision="fp32", **adapt)
    for stage in (ingest, split, tokenize):
        run(stage)
    return mini


def change_params(**adapt: Any) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["encoders"]["small"]["adapt"] |= adapt
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def samples(rows: np.ndarray | None = None) -> PairSamples:
    tokens, params = TokenStore("data/tokens/unlabeled.arrow"), load(EncoderParams, "encoders.small")
    rows = usable_rows(tokens, open_labeled()) if rows is None else rows
    manifest = SplitManifest("raw", "unlabeled")
    return PairSamples("raw", tokens, rows, load_vision_encoder(params).preprocess, params.adapt, manifest)


def content() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(TARGET.iterdir())}


def forbidden_groups() -> set[int]:
    """By the parquet files alone: groups of the holdout and of the test videos."""
    folds, test = (pq.read_table(f"data/{name}.parquet").to_pandas() for name in ("folds", "samples/test"))
    return set(folds.group[folds.fold == HOLDOUT]) | set(test.group)


def test_no_pair_duplicates_a_holdout_or_test_video(mini: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, labeled = TokenStore("data/tokens/unlabeled.arrow"), open_labeled()
    group = pq.read_table("data/samples/unlabeled.parquet").column("group").to_numpy()
    assert not forbidden_groups() & set(group[usable_rows(tokens, labeled)])
    monkeypatch.setattr(pairs, "excluded_groups", lambda *_: np.zeros(0, np.int64))  # the planted leak
    assert forbidden_groups() & set(group[usable_rows(tokens, labeled)])


def test_videos_without_title_or_frames_are_no_pairs(mini: MiniRoot) -> None:
    rows = usable_rows(TokenStore("data/tokens/unlabeled.arrow"), open_labeled())
    assert len(rows) > 30
    table = pq.read_table("data/samples/unlabeled.parquet").to_pandas().iloc[rows]
    assert (table.frames > 0).all()
    assert (table.title != "").all()


def test_a_pair_is_drawn_by_seed_epoch_and_video_alone(mini: MiniRoot) -> None:
    """Not by its batch, its position or the order of calls."""
    pool = samples()
    together, alone = pool.batch(np.array([3, 5, 7]), (0, 1)), pool.batch(np.array([5]), (0, 1))
    assert torch.equal(together["pixels"][1], alone["pixels"][0])
    other_epoch, other_seed = (pool.batch(np.array([5]), draw)["pixels"] for draw in ((0, 2), (1, 1)))
    assert not torch.equal(alone["pixels"], other_epoch)
    assert not torch.equal(alone["pixels"], other_seed)


def test_broken_frames_are_passed_over(mini: MiniRoot) -> None:
    """The next frame stands in; a video without any is left out of the loss."""
    first, second = (record["id"] for record in mini.records["unlabeled"][:2])
    mini.write_zip("unlabeled", first, [b"\xff\xd8 no picture", jpeg(1)])
    mini.write_zip("unlabeled", second, [b"\xff\xd8 no picture"])
    write_manifest(mini.root)
    pool = samples(np.array([0, 1]))
    for epoch in range(4):
        assert pool.batch(np.array([0, 1]), (0, epoch))["has_frame"].tolist() == [True, False]


@pytest.mark.medium
def test_several_processes_publish_an_unadapted_tower_once(mini: MiniRoot) -> None:
    """Only the main process writes: two writers of one folder would take it away from each other."""
    change_params(epochs=0)
    adapt()
    expected = content()
    shutil.rmtree(TARGET)
    own = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "FRAMEFOLD_PROCESSES": "3"}
    command = [sys.executable, "-m", "stages.adapt_clip", "--encoder", "small"]
    result = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert content() == expected
    assert not list(TARGET.parent.glob(".*aside"))


def test_zero_epochs_pass_the_tower_through(mini: MiniRoot) -> None:
    change_params(epochs=0)
    adapt()
    torch.manual_seed(0)
    came, saved = load_vision_encoder(load(EncoderParams, "encoders.small")), load_encoder(TARGET)
    for name, tensor in came.tower.state_dict().items():
        assert torch.equal(saved.tower.state_dict()[name], tensor)
    assert read_json(TARGET / "metrics.json") == {"epochs": 0}


def test_training_changes_the_tower_and_measures_it(mini: MiniRoot) -> None:
    adapt()
    torch.manual_seed(0)
    came, saved = load_vision_encoder(load(EncoderParams, "encoders.small")), load_encoder(TARGET)
    for name in ("conv1.weight", "attnpool.c_proj.weight", "bn1.running_mean"):
        assert not torch.equal(saved.tower.state_dict()[name], came.tower.state_dict()[name])
    metrics = read_json(TARGET / "metrics.json")
    for name in ("probe", "probe_standardized", "retrieval", "held_out_loss"):
        assert {f"{name}_before", f"{name}_after"} <= metrics.keys()
    assert read_encoder_config(TARGET)["adapted_epochs"] == 2


def die(_: object) -> None:
    os._exit(1)


def test_a_signal_that_ends_the_probes_workers_too_is_told_as_such(
    mini: MiniRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent to the whole group: 128 + signal, as of a stage that was stopped, and not an error about a dead worker."""

    def decode(pool: WorkerPool, read: Any, entries: Iterable[Any]) -> Iterator[Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return pool.map(die, entries)

    monkeypatch.setenv("FRAMEFOLD_WORKERS", "1")
    monkeypatch.setattr(frames_probe, "decode", decode)
    with pytest.raises(SystemExit) as stopped:
        adapt()
    assert stopped.value.code == 128 + signal.SIGTERM


def test_interrupted_ends_with_the_same_bytes(mini: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second epoch. The planted defect, a checkpoint whose running statistics are lost, shows."""
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINT_SECONDS", "0")
    adapt()
    expected = content()
    assert resumed(monkeypatch) == expected
    assert resumed(monkeypatch, lost="encoder.tower.bn1.running_mean") != expected


def resumed(monkeypatch: pytest.MonkeyPatch, lost: str | None = None) -> dict[str, bytes]:
    """The outputs after a kill in the second epoch; `lost`: a tensor that the checkpoint has forgotten."""
    shutil.rmtree(TARGET)
    batch, load_state = EpochBatches.__getitem__, Scratch.load

    def deadly(self: EpochBatches, index: int) -> dict[str, torch.Tensor]:
        if (self.epoch, index) == (1, 1):
            raise Killed
        return batch(self, index)

    def forgetful(self: Scratch) -> dict[str, Any] | None:
        state = load_state(self)
        assert state is not None
        for weights in (state["model"], state["ema"]["model"]) if lost else ():
            weights[lost] = torch.zeros_like(weights[lost])
        return state

    with monkeypatch.context() as patch:
        patch.setattr(EpochBatches, "__getitem__", deadly)
        with pytest.raises(Killed):
            adapt()
    with monkeypatch.context() as patch:
        patch.setattr(Scratch, "load", forgetful)
        adapt()
    return content()


def test_given_features_need_no_encoder(mini: MiniRoot) -> None:
    (mini.root / "zip_frames").rename(mini.root / "elsewhere")
    write_archives(mini.root, {r["id"]: np.ones((2, 6), np.float16) for r in mini.records["unlabeled"]})
    adapt()
    config = read_encoder_config(TARGET)
    assert (config["recipe"], config["dim"]) == (None, 6)
    run(extract_frames, "--encoder", "small", "--split", "unlabeled")
    assert pq.read_table("data/features/small/unlabeled/index.parquet").column("n_frames").type == pa.int32()


def test_too_small_a_pool_says_what_to_do(mini: MiniRoot, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table("data/samples/unlabeled.parquet")
    no_frames = pa.array(np.zeros(table.num_rows, np.int32))
    pq.write_table(
        table.set_column(table.schema.get_field_index("frames"), "frames", no_frames), "data/samples/unlabeled.parquet"
    )
    with pytest.raises(SystemExit):
        adapt()
    assert "adapt.epochs to 0" in capsys.readouterr().err


def of_one_process(rank: int, world: int, port: int, folder: str) -> None:
    """Gradients of a loss over all rows, each process holding some of them: 3 and 2."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=world, rank=rank)
    rows, valid = five_rows()
    own, share = rows[rank::world].clone().requires_grad_(), Share(len(rows[rank::world]), 5, rank, world)
    together, seen = share.gather(own), share.gather_mask(valid[rank::world])
    (together @ together.T).tanh().mul(seen * seen[:, None]).sum().backward()
    torch.save((together.detach()[seen], own.grad / world), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def five_rows() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([True, True, False, True, True])


@pytest.mark.medium
def test_titles_of_all_processes_are_negatives(tmp_path: Path) -> None:
    """Rows gathered from two processes are all rows, and gradients are those of one process."""
    rows, valid = five_rows()
    rows.requires_grad_()
    order = [0, 2, 4, 1, 3]
    together = rows[order][valid[order]]
    (together @ together.T).tanh().sum().backward()
    torch.multiprocessing.spawn(of_one_process, (2, 29_517, str(tmp_path)), nprocs=2)
    for rank in range(2):
        gathered, gradient = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(gathered, together.detach())
        torch.testing.assert_close(gradient, rows.grad[rank::2])


@pytest.mark.medium
def test_adapted_features_beat_the_unadapted_by_ten_points(tmp_path: Path) -> None:
    """On the demo's generated data with the committed settings, at a third of its size and of its training."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["demo"] |= {"labeled": 800, "unlabeled": 3000, "test": 100}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for command in ("demo_data demo", "ingest", "split", "tokenize", "adapt_clip --encoder small"):
        name, *arguments = command.split()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", f"stages.{name}", *arguments], cwd=tmp_path, env=environment, check=True)
    metrics = read_json(tmp_path / TARGET / "metrics.json")
    assert metrics["probe_after"] >= metrics["probe_before"] + 0.10
    assert metrics["probe_standardized_after"] > metrics["probe_standardized_before"]
    assert metrics["held_out_loss_after"] < np.log(metrics["held_out_pairs"]) - 0.1  # better than chance on new pairs
