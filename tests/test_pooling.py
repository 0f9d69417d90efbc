"""Pooling: each kind against a plain loop, what padding may do, batch normalisation with a mask, dropout samples.

pytest tests/test_pooling.py
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from head_params import SIZES, arch_params
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.models.heads import ClassificationHead, masked_mean
from framefold.models.normalization import MaskedBatchNorm
from framefold.models.pooling import AttentionPooling, MaxPooling, NextVlad, Pooling
from framefold.models.registry import build_model, load_model, load_weights_into, save_model
from framefold.params.models import TextModelParams, TextSizes

HIDDEN, KINDS = 6, ["max", "attention", "nextvlad"]
ARCHS, VOCAB, DIM, CLASSES = ("single_stream", "dual_stream"), 50, 12, 7
Batch = dict[str, Tensor]


def random_weights(module: nn.Module) -> Any:
    """Weights, and running statistics, at which nothing is 0 or 1 by construction."""
    generator = torch.Generator().manual_seed(3)
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data = tensor.data + 0.6 * (torch.rand(tensor.shape, generator=generator) - 0.5)
    return module.eval()


def pooling(kind: str) -> Pooling:
    torch.manual_seed(0)
    made = {"max": MaxPooling, "attention": AttentionPooling}.get(kind)
    return random_weights(made(HIDDEN) if made else NextVlad(HIDDEN, SIZES))


def make_states(counts: tuple[int, ...] = (5, 1, 0, 3)) -> tuple[Tensor, Tensor]:
    """States (B, T, H) of videos with so many of them, and their mask."""
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(len(counts), max(counts), HIDDEN, generator=generator)
    return states, torch.arange(max(counts)) < torch.tensor(counts)[:, None]


def values(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


# Each kind against a loop over videos, states and groups


def looped_max(pool: nn.Module, states: np.ndarray) -> np.ndarray:
    return np.array([max(column) for column in states.T])


def looped_attention(pool: nn.Module, states: np.ndarray) -> np.ndarray:
    w = values(pool)
    strengths = [
        math.exp(np.tanh(w["dense.weight"] @ state + w["dense.bias"]) @ w["score.weight"][0]) for state in states
    ]
    return sum(strength * state for strength, state in zip(strengths, states, strict=True)) / sum(strengths)


def looped_nextvlad(pool: nn.Module, states: np.ndarray) -> np.ndarray:
    """The paper's equations (3) to (6), with running statistics."""
    w, units = values(pool), SIZES.expansion * HIDDEN // SIZES.groups
    sums = np.zeros((SIZES.clusters, units))
    for state in states:
        wide = w["expand.weight"] @ state + w["expand.bias"]
        logits = normalised(w["assign.weight"] @ wide, w, "assign_norm")
        for group in range(SIZES.groups):
            gate = 1 / (1 + math.exp(-(w["gate.weight"][group] @ wide + w["gate.bias"][group])))
            own = np.exp(logits[group * SIZES.clusters : (group + 1) * SIZES.clusters])
            part = wide[group * units : (group + 1) * units]
            for cluster in range(SIZES.clusters):
                sums[cluster] += gate * own[cluster] / own.sum() * (part - w["centres"][cluster])
    unit = np.concatenate([row / np.linalg.norm(row) for row in sums])
    return w["out.weight"] @ normalised(unit, w, "sums_norm") + w["out.bias"]


def normalised(values: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    scaled = (values - w[f"{name}.running_mean"]) / np.sqrt(w[f"{name}.running_var"] + 1e-5)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_pooling_equals_a_plain_loop(kind: str) -> None:
    loop = {"max": looped_max, "attention": looped_attention, "nextvlad": looped_nextvlad}[kind]
    pool, (states, mask) = pooling(kind), make_states()
    found = pool(states, mask).numpy()
    for row in (0, 1, 3):
        expected = loop(pool, states[row][mask[row]].double().numpy())
        np.testing.assert_allclose(found[row], expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("filler", [0.0, 1e4, float("inf"), float("nan")])
def test_padding_does_not_change_what_is_pooled(kind: str, training: bool, filler: float) -> None:
    """Neither its content nor its amount, in training too, where NeXtVLAD normalises over the batch."""
    states, mask = make_states()
    padded = torch.cat([states, torch.zeros(len(states), 3, HIDDEN)], 1)
    longer = torch.cat([mask, torch.zeros(len(states), 3, dtype=torch.bool)], 1)
    padded[~longer] = filler
    expected, found = pooling(kind).train(training), pooling(kind).train(training)
    torch.testing.assert_close(found(padded, longer), expected(states, mask), atol=1e-5, rtol=0)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, expected.state_dict()[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [0, 4])
def test_nothing_kept_gives_zeros_and_finite_gradients(kind: str, frames: int) -> None:
    """Videos without any frame, with padding and without a single column of it."""
    pool = pooling(kind).train()
    states = torch.randn(3, frames, HIDDEN, requires_grad=True)
    pooled = pool(states, torch.zeros(3, frames, dtype=torch.bool))
    pooled.square().sum().backward()
    assert pooled.shape == (3, pool.size)
    assert not pooled.any()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in pool.parameters())


@torch.no_grad()
def test_videos_without_frames_do_not_count_in_statistics() -> None:
    """In training NeXtVLAD gives the others what it gives them alone, and moves its running statistics alike."""
    (states, mask), alone, together = make_states(), pooling("nextvlad").train(), pooling("nextvlad").train()
    some = mask.any(1)
    assert not some.all()
    torch.testing.assert_close(together(states, mask)[some], alone(states[some], mask[some]), atol=1e-5, rtol=0)
    for one, other in zip(together.buffers(), alone.buffers(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_none_goes_to_padding(kind: str) -> None:
    states, mask = make_states()
    states[~mask] = float("nan")
    states.requires_grad_()
    pool = pooling(kind).train()
    (pool(states, mask) * torch.arange(pool.size)).sum().backward()
    assert states.grad is not None
    assert not states.grad[~mask].any()
    assert states.grad[mask].isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in pool.parameters())


@torch.no_grad()
def test_attention_starts_as_the_mean() -> None:
    states, mask = make_states()
    torch.testing.assert_close(AttentionPooling(HIDDEN)(states, mask), masked_mean(states, mask))


def test_groups_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="groups: 5 do not divide 12"):
        NextVlad(HIDDEN, SIZES.model_copy(update={"groups": 5}))


# Batch normalisation with a mask


def test_masked_batch_norm_is_batch_norm_of_what_is_kept() -> None:
    """Outputs, gradients and running statistics of torch's own layer, which is given the kept states alone."""
    own, reference = random_weights(MaskedBatchNorm(HIDDEN)).train(), nn.BatchNorm1d(HIDDEN)
    reference.load_state_dict(own.state_dict(), strict=False)
    target = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(2))
    results = []
    for layer in (own, reference):
        states, mask = make_states()
        states.requires_grad_()
        found = own(states, mask)[mask] if layer is own else reference(states[mask])
        (found * target).sum().backward()
        results.append([found, states.grad, layer.weight.grad, layer.running_mean, layer.running_var])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    layer, (states, mask) = reference.eval(), make_states()
    torch.testing.assert_close(own.eval()(states, mask)[mask], layer(states[mask]), atol=1e-5, rtol=1e-5)


def test_a_batch_without_states_leaves_the_statistics() -> None:
    layer = random_weights(MaskedBatchNorm(HIDDEN)).train()
    before = [layer.running_mean.clone(), layer.running_var.clone()]
    assert not layer(torch.full((2, 3, HIDDEN), float("nan")), torch.zeros(2, 3, dtype=torch.bool)).any()
    assert torch.equal(layer.running_mean, before[0])
    assert torch.equal(layer.running_var, before[1])


def test_statistics_are_float32_in_mixed_precision() -> None:
    pool, (states, mask) = pooling("nextvlad").train(), make_states()
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pool(states.bfloat16(), mask)
    assert {tensor.dtype for tensor in [pooled, *pool.buffers()]} == {torch.float32}


# Dropout samples


def head(dropout: float, samples: int) -> ClassificationHead:
    torch.manual_seed(0)
    return ClassificationHead(HIDDEN, 8, CLASSES, dropout, samples)


@torch.no_grad()
def test_dropout_samples_are_the_mean_over_masks() -> None:
    """Against the masks themselves: the same draws, one mask at a time by hand."""
    layer, pooled, keep = head(0.4, 3).train(), torch.randn(5, HIDDEN), 0.6
    torch.manual_seed(7)
    found = layer(pooled)
    torch.manual_seed(7)
    first = nn.functional.dropout(torch.ones(3, 5, HIDDEN), 1 - keep)
    second = nn.functional.dropout(torch.ones(3, 5, 8), 1 - keep)
    assert len({tuple(mask.flatten().tolist()) for mask in first}) == 3
    one = [layer.out(nn.functional.gelu(layer.dense(pooled * first[k])) * second[k]) for k in range(3)]
    torch.testing.assert_close(found, (one[0] + one[1] + one[2]) / 3, atol=1e-6, rtol=0)


@torch.no_grad()
def test_dropout_samples_make_logits_less_noisy() -> None:
    """The variance of a mean of k independent logits is a k-th."""
    pooled = torch.randn(1, HIDDEN).expand(4000, -1)
    one, eight = (head(0.5, samples).train()(pooled).var(0).mean() for samples in (1, 8))
    assert float(one / eight) == pytest.approx(8, rel=0.15)


@torch.no_grad()
def test_one_dropout_sample_is_plain_dropout() -> None:
    """The same logits and the same draws as a head without samples; in evaluation any number does nothing."""
    layer, pooled = head(0.4, 1).train(), torch.randn(5, HIDDEN)
    torch.manual_seed(7)
    found, state = layer(pooled), torch.get_rng_state()
    torch.manual_seed(7)
    dropped = nn.functional.dropout(pooled, 0.4)
    expected = layer.out(nn.functional.dropout(nn.functional.gelu(layer.dense(dropped)), 0.4))
    assert torch.equal(found, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(head(0.4, 5).eval()(pooled), layer.eval()(pooled))


# In the architectures


def build(arch: str, text: str = "mean", frames: str = "mean", samples: int = 1) -> Any:
    sizes = TextSizes(layers=1, hidden=32, heads=4, intermediate=64, max_positions=24, dropout=0.1, topics=False)
    text_model = TextModelParams(folder=None, sha256=None, sizes=sizes)
    params = arch_params(arch, layers=1, hidden=16, dropout=0.1, text=text, frames=frames, samples=samples)
    torch.manual_seed(0)
    return build_model(arch, text_model, params, VOCAB, DIM, CLASSES).eval()


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return {
        "input_ids": torch.randint(5, VOCAB, (4, 9), generator=generator),
        "text_mask": torch.arange(9) < torch.tensor([9, 5, 2, 7])[:, None],
        "frames": torch.randn(4, 5, DIM, generator=generator),
        "frame_mask": torch.arange(5) < torch.tensor([5, 3, 4, 0])[:, None],
    }


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_means_are_what_they_were_without_a_choice(arch: str) -> None:
    """No weights of their own, the masked means in their places, and the plain head on them."""
    model, batch = build(arch), make_batch()
    assert [name for name in model.state_dict() if "pooling" in name] == []
    encoded = model.encode(batch)
    means = [masked_mean(encoded.text, encoded.text_mask), masked_mean(encoded.frames, encoded.frame_mask)]
    assert torch.equal(encoded.pooled[:, : 2 * 32], torch.cat(means, 1))
    assert torch.equal(model(batch), model.head(encoded.pooled))
    assert model.pooled_size == (2 if arch == "single_stream" else 3) * 32


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("text", "frames"), [("max", "max"), ("attention", "attention"), ("mean", "nextvlad")])
def test_neighbours_and_batch_size_do_not_change_logits(arch: str, text: str, frames: str) -> None:
    """A video alone, cut to its own length (no frame column at all if it has none), scores as in its batch."""
    model, batch = random_weights(build(arch, text, frames)), make_batch()
    for row in range(4):
        tokens, count = int(batch["text_mask"][row].sum()), int(batch["frame_mask"][row].sum())
        cut = {"input_ids": tokens, "text_mask": tokens, "frames": count, "frame_mask": count}
        alone = {name: batch[name][row : row + 1, :length] for name, length in cut.items()}
        torch.testing.assert_close(model(alone), model(batch)[row : row + 1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("text", "frames"), [("attention", "attention"), ("mean", "nextvlad")])
def test_every_weight_of_a_pooling_learns(arch: str, text: str, frames: str) -> None:
    """With the head's rate, and with a gradient that is not zero."""
    model = random_weights(build(arch, text, frames)).train()
    nn.functional.cross_entropy(model(make_batch()), torch.tensor([0, 1, 2, 3])).backward()
    own = {name: weight for name, weight in model.named_parameters() if "pooling" in name}
    assert len(own) == (6 if frames == "attention" else 12)
    assert {model.role_of(name) for name in own} == {"head"}
    assert [name for name, weight in own.items() if weight.grad is None or not weight.grad.any()] == []


@torch.no_grad()
@pytest.mark.parametrize("arch", ARCHS)
def test_saved_model_keeps_pooling_and_statistics(arch: str, tmp_path: Any) -> None:
    """Rebuilt from its folder alone; another pooling's weights are refused by the name of the setting."""
    model = random_weights(build(arch, "attention", "nextvlad", samples=4))
    save_model(tmp_path, model)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(make_batch()), model(make_batch()))
    assert loaded.head.samples == 4
    load_weights_into(build(arch, "attention", "nextvlad", samples=1), tmp_path)  # dropout may be set anew
    with pytest.raises(UserError, match=r"params\.pooling\.frames is 'nextvlad' there and 'mean' here"):
        load_weights_into(build(arch, "attention", "mean"), tmp_path)
