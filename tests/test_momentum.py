"""Contrast with a momentum encoder, a queue and soft targets, against plain loops: pytest tests/test_momentum.py"""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from real_tasks import OPTIONS, Real, real_task, train_real
from stores import make_project, small_params

from framefold.errors import UserError
from framefold.objectives.itc import info_nce
from framefold.params.base import validate
from framefold.params.pretrain import ContrastParams, PretrainParams
from framefold.params.training import AdversarialParams, OptimizationParams
from framefold.training.averaging import ExponentialAverage
from framefold.training.momentum import MomentumContrast, Vectors, VideoQueue, alpha_at
from framefold.training.sharing import Share

DUAL, DIM, SCALE = "pretrain_all dual_stream", 4, 9.0
LOOP = OptimizationParams(epochs=2, batch_size=7, weight_decay=0.01, warmup=0.2, max_grad_norm=1.0, ema_decay=0.9)


def contrast(**changes: float) -> ContrastParams:
    settings = {"queue": 0, "soft_targets": 0.0, "alpha_start": 1.0, "alpha_ramp": 0.0} | changes
    return ContrastParams(embed_dim=DIM, temperature=0.07, **settings)


def units(count: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.from_numpy(np.random.default_rng(seed).normal(size=(count, DIM))), dim=-1
    )


def vectors(count: int, seed: int) -> Vectors:
    return Vectors(units(count, 2 * seed).float(), units(count, 2 * seed + 1).float())


def softmax(values: list[float]) -> np.ndarray:
    exponents = np.exp(np.array(values) - max(values))
    return exponents / exponents.sum()


def looped(
    own: Vectors,
    momentum: Vectors,
    old: list[tuple],
    keys: list[int],
    valid: list[bool],
    alpha: float,
    scale: float = SCALE,
) -> float:
    """The loss of ALBEF (Li et al. 2021, equations 1 to 6), one video, one direction and one candidate at a time.

    scale: of the logits; that of the targets stays, as they are constants.
    """
    losses = []
    for side in (0, 1):
        for row in range(len(keys)):
            if not valid[row]:
                continue
            new = [(momentum[1 - side][i].numpy(), keys[i]) for i in range(len(keys)) if valid[i] or i == row]
            place = [i for i in range(len(keys)) if valid[i] or i == row].index(row)
            candidates = [(vector, key, number == place) for number, (vector, key) in enumerate(new)]
            candidates += [(pair[1 - side], key, False) for pair, key in old]
            candidates = [(vector, right) for vector, key, right in candidates if right or key != keys[row]]
            similar = softmax([scale * float(own[side][row].numpy() @ vector) for vector, _ in candidates])
            soft = softmax([SCALE * float(momentum[side][row].numpy() @ vector) for vector, _ in candidates])
            target = alpha * soft + (1 - alpha) * np.array([right for _, right in candidates])
            losses.append(-(target * np.log(similar)).sum())
    return float(np.mean(losses))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_loss_is_that_of_a_plain_loop(alpha: float) -> None:
    """Over three steps: candidates are the valid videos of the batch and the queue, never one's own video."""
    module, old = MomentumContrast(contrast(queue=50, soft_targets=alpha)), []
    for step, (count, missing) in enumerate([(5, 3), (4, 0), (6, 5)]):
        own, momentum = vectors(count, step), vectors(count, 10 + step)
        keys = [7, 8, 9, 10, 11, 12][:count]  # the same videos again
        valid = [row != missing for row in range(count)]
        inputs = torch.tensor(SCALE), momentum, torch.tensor(keys), torch.tensor(valid), Share(count, count)
        loss, _ = module(own, *inputs)
        assert float(loss) == pytest.approx(looped(own, momentum, old, keys, valid, alpha), rel=1e-5)
        pairs = zip(momentum.text.numpy(), momentum.frames.numpy(), strict=True)
        old += [(pair, key) for pair, key, counts in zip(pairs, keys, valid, strict=True) if counts]


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_the_temperature_learns_as_the_loss_changes_with_it(alpha: float) -> None:
    """Its gradient is the plain loop's slope, a central difference in float64."""
    own, momentum = (Vectors(units(6, seed), units(6, seed + 1)) for seed in (0, 2))
    log_scale = torch.tensor(math.log(SCALE), dtype=torch.float64, requires_grad=True)
    keys, valid, step = [7, 8, 9, 10, 7, 11], [True] * 5 + [False], 1e-5
    inputs = log_scale.exp(), momentum, torch.tensor(keys), torch.tensor(valid), Share(6, 6)
    MomentumContrast(contrast(soft_targets=alpha))(own, *inputs)[0].backward()
    above, below = (looped(own, momentum, [], keys, valid, alpha, SCALE * math.exp(h)) for h in (step, -step))
    assert float(log_scale.grad) == pytest.approx((above - below) / (2 * step), rel=1e-4)


def test_a_temperature_beyond_the_bound_counts_as_the_bound_and_learns_no_more() -> None:
    own, momentum, losses = vectors(6, 0), vectors(6, 1), []
    scales = [torch.tensor(value, requires_grad=True) for value in (100.0, 250.0)]
    for scale in scales:
        inputs = scale, momentum, torch.arange(6), torch.ones(6, dtype=torch.bool), Share(6, 6)
        losses.append(MomentumContrast(contrast(soft_targets=0.4))(own, *inputs)[0])
    assert losses[0] == losses[1]
    losses[1].backward()
    assert scales[1].grad == 0


def test_without_queue_and_with_itself_as_momentum_encoder_it_is_the_plain_contrast() -> None:
    own, valid = vectors(6, 0), torch.tensor([True, True, False, True, True, True])
    inputs = torch.tensor(SCALE), own, torch.arange(6), valid, Share(6, 6)
    loss, accuracy = MomentumContrast(contrast())(own, *inputs)
    expected = info_nce(own.text, own.frames, valid, torch.tensor(SCALE))
    torch.testing.assert_close(loss, expected)
    similar = (own.text @ own.frames.T).numpy()[valid][:, valid]
    right = [similar.argmax(axis) == np.arange(5) for axis in (0, 1)]
    assert float(accuracy) == pytest.approx(np.mean(right))


def test_nothing_valid_is_a_loss_of_zero_with_finite_gradients() -> None:
    own = vectors(3, 0)
    own.text.requires_grad_()
    inputs = torch.tensor(SCALE), vectors(3, 1), torch.arange(3), torch.zeros(3, dtype=torch.bool), Share(3, 3)
    loss, accuracy = MomentumContrast(contrast(queue=4, soft_targets=0.5))(own, *inputs)
    loss.backward()
    assert (float(loss.detach()), float(accuracy)) == (0, 0)
    assert own.text.grad is not None
    assert not own.text.grad.any()


@pytest.mark.parametrize("size", [1, 5, 8, 16])
def test_queue_holds_the_last_videos_after_uneven_steps(size: int) -> None:
    """Against a list to which every video is appended: batches that wrap, fill it exactly, or are larger than it."""
    queue, every = VideoQueue(size, DIM), []
    for step, count in enumerate([3, 1, 8, 2, 16, 5, 7, 20, 4]):
        batch, keys = vectors(count, step), torch.arange(count) + 100 * step
        valid = torch.from_numpy(np.random.default_rng(step).random(count) < 0.7)
        queue.enqueue(batch, keys, valid)
        every += zip(batch.text.tolist(), batch.frames.tolist(), keys.tolist(), valid.tolist(), strict=True)
        slots = [number % size for number in range(len(every))]
        expected = dict(zip(slots, every, strict=True))  # the later one stays
        assert int(queue.position) == len(every) % size
        for slot in range(size):
            text, frames, key, counts = expected.get(slot, ([0.0] * DIM, [0.0] * DIM, 0, False))
            assert (queue.text[slot].tolist(), queue.frames[slot].tolist()) == (text, frames)
            assert (int(queue.keys[slot]), bool(queue.valid[slot])) == (key, counts)


def test_slots_that_are_not_filled_yet_never_count() -> None:
    """Whatever stands in them: the loss is that of the videos there are."""
    own, momentum = vectors(5, 0), vectors(5, 1)
    inputs = torch.tensor(SCALE), momentum, torch.arange(5), torch.ones(5, dtype=torch.bool), Share(5, 5)
    losses = []
    for size, fill in ((0, 0.0), (64, 0.0), (64, 9.0)):
        module = MomentumContrast(contrast(queue=size, soft_targets=0.3))
        module.queue.text.fill_(fill)
        module.queue.frames.fill_(fill)
        losses.append(float(module(own, *inputs)[0]))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_alpha_rises_from_above_zero() -> None:
    """Linear in the share of the training that is done, to all of it at the ramp's end."""
    params = contrast(soft_targets=0.4, alpha_start=0.25, alpha_ramp=0.5)
    assert [alpha_at(params, done) for done in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.1, 0.25, 0.4, 0.4])
    assert alpha_at(contrast(soft_targets=0.4, alpha_start=0.25, alpha_ramp=0.0), 0.0) == 0.4
    assert alpha_at(contrast(soft_targets=0.0, alpha_start=0.25, alpha_ramp=0.5), 0.9) == 0


def test_targets_cannot_start_at_zero_and_momentum_needs_an_average() -> None:
    content = small_params()["pretrain"]
    with pytest.raises(UserError, match="alpha_start"):
        validate(PretrainParams, content | {"contrast": content["contrast"] | {"alpha_start": 0.0}}, "pretrain", "p")
    for name in ("queue", "soft_targets"):
        changed = content | {"contrast": content["contrast"] | {name: 1}}
        assert validate(PretrainParams, changed, "pretrain", "p").contrast.uses_momentum
        with pytest.raises(UserError, match="need an ema_decay above 0"):
            validate(PretrainParams, changed | {"ema_decay": 0.0}, "pretrain", "p")


# in the training loop ------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEFOLD_DEVICE", "cpu")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def test_ema_copies_the_queue(project: Path) -> None:
    """A mean of vectors of different videos would belong to none of them."""
    model = real_task(DUAL).task.model
    ema = ExponentialAverage(model, 0.9)
    for step in range(3):
        model.momentum.queue.enqueue(vectors_of(model, 9, step), torch.arange(9) + step, torch.ones(9).bool())
        with torch.no_grad():
            model.itc_head.text.weight.add_(1.0)
        ema.update()
    for name, buffer in model.momentum.queue.named_buffers():
        assert torch.equal(ema.model.momentum.queue.get_buffer(name), buffer), name
    assert not torch.equal(ema.model.itc_head.text.weight, model.itc_head.text.weight)


def vectors_of(model: torch.nn.Module, count: int, seed: int) -> Vectors:
    rng = torch.Generator().manual_seed(seed)
    shape = count, model.momentum.queue.text.shape[1]
    return Vectors(torch.randn(shape, generator=rng), torch.randn(shape, generator=rng))


def test_every_batch_joins_the_queue_once_in_order(project: Path) -> None:
    """The videos of the last batches, also with small micro-batches; they are those of the epochs' batches."""
    real = real_task(DUAL)
    result = train_real(real, LOOP, "queue")
    queue, size = result.model.momentum.queue, OPTIONS["contrast"]["queue"]
    keys = [key for epoch in range(2) for batch in batches(real, epoch) for key in batch["key"].tolist()]
    expected = dict(zip([number % size for number in range(len(keys))], keys, strict=True))
    assert queue.keys.tolist() == [expected[slot] for slot in range(size)]
    assert int(queue.position) == len(keys) % size
    filled = queue.text.norm(dim=1)
    assert filled.tolist() == pytest.approx([1.0] * size, abs=1e-5)


def batches(real: Real, epoch: int) -> list[dict[str, torch.Tensor]]:
    made = real.epochs(epoch)
    return [made[i] for i in range(len(made))]


def test_the_momentum_encoder_is_the_average_without_dropout(project: Path) -> None:
    """Candidates and soft targets are what the EMA makes of the batch in eval mode, though the loop's is in training
    mode. The model is in eval mode here, so that its own vectors are known, too."""
    task, batch = (real := real_task(DUAL, dropout=0.3)).task, real.epochs(0)[0]
    model = task.model.eval()
    model.itc_head.log_scale.data.fill_(math.log(SCALE))
    average = copy.deepcopy(model).train()
    torch.manual_seed(1)
    for parameter in average.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    expected, own = copy.deepcopy(average).eval().contrast_vectors(batch), model.contrast_vectors(batch)
    task.average = average
    _, parts = task.loss(batch, Share(7, 7, done=1.0))
    valid = (batch["frame_mask"].any(1) & (batch["text_mask"].sum(1) > 2)).tolist()
    by_loop = looped(own, expected, [], batch["key"].tolist(), valid, OPTIONS["contrast"]["soft_targets"])
    assert float(parts["loss_itc"]) == pytest.approx(by_loop, rel=1e-5)
    assert not task.average.training


def test_evaluation_leaves_the_queue_alone(project: Path) -> None:
    real = real_task(DUAL)
    before, batch = copy.deepcopy(real.task.model.state_dict()), real.epochs(0)[0]
    real.task.model.eval()
    real.task.loss(batch, Share(7, 7))
    assert all(torch.equal(tensor, before[name]) for name, tensor in real.task.model.state_dict().items())
    real.task.model.train()
    real.task.loss(batch, Share(7, 7))
    assert int(real.task.model.momentum.queue.position) == 7


def test_alpha_follows_the_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop tells each step what share of the samples is done; never zero, not even in the first epoch."""
    seen: list[float] = []
    monkeypatch.setattr(
        "framefold.training.momentum.alpha_at", lambda params, done: (seen.append(done), alpha_at(params, done))[1]
    )
    train_real(real_task(DUAL), LOOP, "alpha")
    assert seen == pytest.approx([step / 10 for step in range(10)])
    params = contrast(**OPTIONS["contrast"], alpha_start=0.1, alpha_ramp=0.3)
    assert min(alpha_at(params, done) for done in seen) == pytest.approx(0.04)


def test_an_interrupted_training_ends_with_the_same_queue_and_weights(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dying(number: int) -> Real:
        real, left = real_task(DUAL, dropout=0.1), iter(range(number))
        loss = real.task.loss

        def counted(batch: dict, share: Share) -> tuple:
            if next(left, None) is None:
                raise Killed
            return loss(batch, share)

        real.task.loss = counted
        return real

    monkeypatch.setenv("FRAMEFOLD_CHECKPOINT_SECONDS", "0")
    whole = train_real(real_task(DUAL, dropout=0.1), LOOP, "whole")
    for number in (3, 4):
        with pytest.raises(Killed):
            train_real(dying(number), LOOP, "broken")
    found = train_real(real_task(DUAL, dropout=0.1), LOOP, "broken")
    assert found.history == whole.history
    for one, other in ((found.model, whole.model), (found.ema, whole.ema)):
        for name, tensor in other.state_dict().items():
            assert torch.equal(one.state_dict()[name], tensor), name


def test_an_adversary_would_fill_the_queue_twice(project: Path) -> None:
    real = real_task(DUAL)
    fgm = AdversarialParams(method="fgm", epsilon=0.5, alpha=0.3, steps=3)
    with pytest.raises(ValueError, match="changes at every call"):
        train_real(Real(real.task, real.epochs, real.learning_rates, fgm), LOOP, "twice")


def test_off_there_is_no_queue_and_no_second_encoder(project: Path) -> None:
    model = real_task("pretrain dual_stream").task.model
    assert model.momentum is None
    assert not [name for name, _ in model.named_buffers() if "queue" in name]
