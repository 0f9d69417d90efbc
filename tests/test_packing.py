"""Without padding the text encoder computes what it computes with it: pytest tests/test_packing.py"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from real_tasks import NAMES, real_task, train_real
from stores import make_project
from torch import Tensor

from benchmarks import packing as benchmark
from benchmarks.training import rehearsal
from framefold.data.places import places, with_places
from framefold.models.bert import BertConfig, BertEncoder, BertIntermediate
from framefold.models.packing import Packing, has_varlen
from framefold.params.training import OptimizationParams
from framefold.training.loop import TrainResult, prepared, samples_of
from framefold.training.sharing import Share

CPU = torch.device("cpu")
VIDEO_TASKS = [name for name in NAMES if name != "adapt"]
PARAMS = OptimizationParams(epochs=2, batch_size=7, weight_decay=0.01, warmup=0.2, max_grad_norm=1.0, ema_decay=0.9)
CONFIG = BertConfig(
    vocab_size=50,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=24,
    type_vocab_size=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr("framefold.data.places.CPU_STEP", 4)  # else such small batches keep all their padding
    return tmp_path


def random_mask(seed: int, rows: int = 6, text: int = 9, frames: int = 5) -> Tensor:
    """Text and frames one after the other, as in single_stream: a text of two tokens, a video without frames."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, text + 1, (rows,), generator=generator).index_fill(0, torch.tensor([1]), 2)
    shown = torch.randint(0, frames + 1, (rows,), generator=generator).index_fill(0, torch.tensor([0, 1]), 0)
    return torch.cat([torch.arange(text) < tokens[:, None], torch.arange(frames) < shown[:, None]], dim=1)


def states_of(mask: Tensor, *shape: int, seed: int = 0, count: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*mask.shape, *shape, generator=generator).requires_grad_() for _ in range(count)]


# Places


@pytest.mark.parametrize("step", [1, 4, 16, 1000])
def test_places_are_the_real_positions_and_what_fills_up(step: int) -> None:
    """In order, each once; filled up to a multiple of `step` as far as the mask goes."""
    mask = random_mask(0)
    found, real = places(mask, step).tolist(), np.flatnonzero(mask.numpy()).tolist()
    assert found[: len(real)] == real
    assert len(set(found)) == len(found) == min(-(-len(real) // step) * step, mask.numel())


def test_a_batch_is_given_the_places_of_its_three_views() -> None:
    """Text alone, text before frames, and texts with other videos' frames; on a GPU nothing fills them up."""
    both = random_mask(1)
    text, frames = both[:, :9], both[:, 9:]
    rows, partners = torch.tensor([4, 0]), torch.tensor([2, 5])
    batch = {"text_mask": text, "frame_mask": frames, "pair_rows": rows, "pair_frame_mask": frames[partners]}
    found = with_places(batch, torch.device("cuda"))
    expected = {"real_text": text, "real_inputs": both, "real_pairs": torch.cat([text[rows], frames[partners]], dim=1)}
    assert found.keys() == batch.keys() | expected.keys()
    for name, mask in expected.items():
        assert found[name].tolist() == np.flatnonzero(mask.numpy()).tolist()


def test_batches_of_other_tasks_stay_as_they_are() -> None:
    batch = {"pixels": torch.zeros(2, 3), "text_mask": torch.ones(2, 4, dtype=torch.bool)}
    assert with_places(batch, CPU) is batch


def test_turned_off_a_batch_stays_as_it_is() -> None:
    batch = {"text_mask": torch.ones(2, 4, dtype=torch.bool), "frame_mask": torch.ones(2, 3, dtype=torch.bool)}
    assert prepared(batch, 0, None)[0] is batch


@pytest.mark.parametrize("change", ["another row", "one more"])
def test_places_of_another_mask_are_an_error(change: str) -> None:
    mask = random_mask(2)
    other = mask.roll(1, 0) if change == "another row" else mask.clone().index_fill(0, torch.tensor([1]), True)
    with pytest.raises(RuntimeError):
        Packing(other, places(mask, 1))


# Packing


@pytest.mark.parametrize("step", [1, 16])
def test_packed_states_and_their_gradient(step: int) -> None:
    """Against indexing by the mask, which may have a sync and a sum of its own."""
    mask = random_mask(3)
    (states,) = states_of(mask, 3)
    packed, count = Packing(mask, places(mask, step)).pack(states), int(mask.sum())
    assert torch.equal(packed[:count], states[mask])
    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    weight[count:] = 0
    (found,) = torch.autograd.grad((packed * weight).sum(), states)
    (expected,) = torch.autograd.grad((states[mask] * weight[:count]).sum(), states)
    assert torch.equal(found, expected)


def test_unpacked_states_and_their_gradient() -> None:
    """Each at its place, zeros elsewhere."""
    mask = random_mask(4)
    rows = torch.randn(int(mask.sum()), 2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(*mask.shape, 2, 3, generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(*mask.shape, 2, 3).masked_scatter(mask[..., None, None], rows)
    found = Packing(mask, places(mask, 1)).unpack(rows)
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad((states * weight).sum(), rows)[0] for states in (found, expected)]
    assert torch.equal(*gradients)


def alone(states: list[Tensor], mask: Tensor) -> Tensor:
    """Attention of every row by itself, cut to what is real in it: (N, heads, D)."""
    mixed = []
    for row, kept in enumerate(mask):
        query, key, value = (part[row][kept].transpose(0, 1) for part in states)  # (heads, length, D)
        mixed.append(F.scaled_dot_product_attention(query, key, value).transpose(0, 1))
    return torch.cat(mixed)


@pytest.mark.parametrize("step", [1, 16])
@pytest.mark.parametrize("seed", range(5))
def test_attention_keeps_rows_apart(seed: int, step: int) -> None:
    """States and gradients are those of every row by itself, whatever fills up."""
    mask = random_mask(seed)
    states, count = states_of(mask, 2, 8, seed=seed, count=3), int(mask.sum())
    packing = Packing(mask, places(mask, step))
    found = packing.attend(*(packing.pack(part) for part in states), dropout=0.0)[:count]  # type: ignore[misc]
    expected = alone(states, mask)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(mixed.square().sum(), states) for mixed in (found, expected)]
    torch.testing.assert_close(*gradients)


def by_documentation(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """What varlen_attn is said to compute."""
    mixed = []
    for start, end in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], strict=False):
        assert end - start <= max_q == max_k
        parts = (part[start:end].transpose(0, 1) for part in (query, key, value))
        mixed.append(F.scaled_dot_product_attention(*parts).transpose(0, 1))
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert cu_seq_q.dtype == torch.int32
    assert cu_seq_q[-1] == len(query)
    return torch.cat(mixed)


def test_the_kernel_without_padding_is_told_where_rows_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in that follows its documentation, and the installed one takes the same arguments."""
    import torch.nn.attention.varlen as module

    taken = list(inspect.signature(module.varlen_attn).parameters)[:7]
    assert taken == list(inspect.signature(by_documentation).parameters)
    monkeypatch.setattr(module, "varlen_attn", by_documentation)
    mask = random_mask(5)
    states = states_of(mask, 2, 8, count=3)
    packing = Packing(mask, places(mask, 1))
    found = packing.varlen(*(packing.pack(part) for part in states))
    torch.testing.assert_close(found, alone(states, mask))


def test_the_kernel_is_not_asked_on_the_cpu() -> None:
    assert not has_varlen(torch.zeros(4, 2, 64, dtype=torch.bfloat16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernel_equals_the_fallback(dtype: torch.dtype) -> None:
    """States and gradients, to the rounding of the type."""
    mask = random_mask(6, rows=32, text=150, frames=32)
    real = places(mask, 1).cuda()
    packing = Packing(mask.cuda(), real)
    states = [torch.randn(len(real), 4, 64, device="cuda", dtype=dtype).requires_grad_() for _ in range(3)]
    if not has_varlen(states[0]):
        pytest.skip("this GPU has no such kernel")
    padded = [packing.unpack(part).transpose(1, 2).float() for part in states]
    expected = packing.pack(
        F.scaled_dot_product_attention(*padded, attn_mask=packing.mask[:, None, None, :]).transpose(1, 2)
    )
    found = packing.attend(*states, dropout=0.0)  # type: ignore[misc]
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)
    gradients = [torch.autograd.grad(mixed.float().square().sum(), states) for mixed in (found, expected)]
    torch.testing.assert_close(*gradients, atol=5e-2, rtol=5e-2)


# The encoder and the models


@pytest.mark.parametrize("step", [1, 16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_encoder_equals_the_padded_one(seed: int, training: bool, step: int) -> None:
    """At every real position; at padding that fills nothing up there are zeros."""
    torch.manual_seed(seed)
    encoder, mask = BertEncoder(CONFIG).train(training), random_mask(seed)
    (hidden,) = states_of(mask, 32, seed=seed)
    found, expected = encoder.encode(hidden, mask, places(mask, step)), encoder.encode(hidden, mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=0)
    if step == 1:
        assert not found[~mask].any()


def with_and_without(name: str, batch_number: int) -> list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """Loss, its parts and all gradients, with padding and without."""
    found = []
    for packed in (False, True):
        real = real_task(name)
        batch = real.epochs(0)[batch_number]
        assert not batch["frame_mask"].all()
        if packed:
            batch = with_places(batch, CPU)
        loss, parts = real.task.loss(batch, Share(samples_of(batch), samples_of(batch)))
        loss.backward()
        gradients = {key: value.grad for key, value in real.task.model.named_parameters() if value.grad is not None}
        found.append((loss.detach(), parts, gradients))
    return found


@pytest.mark.parametrize("batch_number", [0, 3])
@pytest.mark.parametrize("name", VIDEO_TASKS)
def test_losses_and_gradients_equal_the_padded_ones(project: Path, name: str, batch_number: int) -> None:
    """Every objective of pretraining and the logits' cross-entropy; some videos have no frames."""
    padded, packed = with_and_without(name, batch_number)
    for found, expected in zip(packed, padded, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", VIDEO_TASKS)
def test_logits_equal_the_padded_ones(project: Path, name: str) -> None:
    real = real_task(name)
    model = getattr(real.task.model, "backbone", real.task.model).eval()
    batch = real.epochs(0)[1]
    torch.testing.assert_close(model(with_places(batch, CPU)), model(batch), atol=1e-5, rtol=0)


def test_other_frames_are_not_packed_by_the_batchs_places(project: Path) -> None:
    """single_stream: places belong to the batch's own mask, so replaced frames are encoded with padding."""
    model, batch = real_task("classify single_stream").task.model, real_task("classify single_stream").epochs(0)[0]
    order = torch.arange(len(batch["frames"])).roll(1)
    others = {"frames": batch["frames"][order], "frame_mask": batch["frame_mask"][order]}
    found = model.encode(with_places(batch, CPU), **others)
    assert torch.equal(found.pooled, model.encode(batch, **others).pooled)


@pytest.mark.parametrize("name", ["classify single_stream", "pretrain dual_stream"])
def test_layers_see_no_padding(project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The knob reaches the layers: it would pass every other test if it did nothing."""
    rows: list[int] = []

    def note(self: BertIntermediate, hidden: Tensor) -> Tensor:
        rows.append(hidden.shape[:-1].numel())
        assert hidden.ndim == 2
        return F.gelu(self.dense(hidden))

    monkeypatch.setenv("FRAMEFOLD_REMOVE_PADDING", "1")
    monkeypatch.setattr("framefold.data.places.CPU_STEP", 1)
    monkeypatch.setattr(BertIntermediate, "forward", note)
    train_real(real_task(name, videos=14), PARAMS.model_copy(update={"epochs": 1}), "packing")
    batches = [real_task(name, videos=14).epochs(0)[number] for number in range(2)]
    masks = ["text_mask", "frame_mask"] if name.endswith("single_stream") else ["text_mask"]
    assert {sum(int(batch[mask].sum()) for mask in masks) for batch in batches} <= set(rows)


# Training


def trained(name: str, **settings: Any) -> TrainResult:
    return train_real(real_task(name, videos=21, **settings), PARAMS, "packing")


def assert_same_training(found: TrainResult, expected: TrainResult) -> None:
    for row, other in zip(found.history, expected.history, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.medium
@pytest.mark.parametrize("name", VIDEO_TASKS)
def test_training_without_padding(project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The real loop; with FGM where labels are learned."""
    expected = trained(name)
    monkeypatch.setenv("FRAMEFOLD_REMOVE_PADDING", "1")
    assert_same_training(trained(name), expected)


@pytest.mark.medium
@pytest.mark.parametrize("workers", ["0", "1"])
def test_micro_batches_have_places_of_their_own(project: Path, monkeypatch: pytest.MonkeyPatch, workers: str) -> None:
    """Also where worker processes make the batches."""
    monkeypatch.setenv("FRAMEFOLD_MICRO_BATCH", "3")
    expected = trained("classify single_stream")
    monkeypatch.setenv("FRAMEFOLD_REMOVE_PADDING", "1")
    monkeypatch.setenv("FRAMEFOLD_WORKERS", workers)
    assert_same_training(trained("classify single_stream"), expected)


@pytest.mark.medium
@pytest.mark.parametrize("name", ["classify single_stream", "pretrain single_stream", "pretrain dual_stream"])
def test_checkpointing_changes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With dropout, bit for bit: layers computed again see the same positions and draws."""
    monkeypatch.setenv("FRAMEFOLD_REMOVE_PADDING", "1")
    expected = trained(name, dropout=0.1)
    monkeypatch.setenv("FRAMEFOLD_CHECKPOINTING", "1")
    assert trained(name, dropout=0.1).history == expected.history


def test_encoder_adaptation_takes_no_notice(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained("adapt")
    monkeypatch.setenv("FRAMEFOLD_REMOVE_PADDING", "1")
    assert trained("adapt").history == expected.history


@pytest.mark.parametrize("share", [0.15, 0.3])
def test_benchmark_pads_as_it_says(tmp_path: Path, share: float) -> None:
    """About the share that was asked for, and every step is timed both ways."""
    (setting,) = rehearsal()
    data = benchmark.make_data(tmp_path, setting, share)
    epoch = benchmark.batches_of(data, setting, ordered=False)
    batches = [epoch[index] for index in range(20)]
    assert benchmark.padding_share(batches) == pytest.approx(share, abs=0.06)
    times = benchmark.compare(benchmark.Steps("dual_stream", setting, data), batches, 2)
    assert times.shape == (2, 2)
    assert (times > 0).all()
