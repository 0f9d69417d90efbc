"""Each objective against an independent computation: .venv/bin/python -m pytest tests/test_objectives.py"""

import time

import numpy as np
import pytest
import torch

from framefold.models.heads import ContrastHead
from framefold.objectives.classification import accuracy, cross_entropy
from framefold.objectives.distillation import agreement, distillation_loss
from framefold.objectives.itc import info_nce, retrieval_accuracy
from framefold.objectives.itm import Pairs, matching_accuracy, matching_loss, mismatched_pairs
from framefold.objectives.keyed import Stream, uniforms
from framefold.objectives.mfm import frame_nce, mask_frames
from framefold.objectives.mlm import mask_tokens, masked_token_loss

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = np.array([PAD, UNK, CLS, SEP, MASK])
VOCAB = 1000


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


def texts(n: int, lengths: list[int], width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] title [SEP] asr [SEP] padding, with the given numbers of tokens in turn."""
    rng = np.random.default_rng(seed)
    ids, mask = np.zeros((n, width), np.int64), np.zeros((n, width), bool)
    for row in range(n):
        size = lengths[row % len(lengths)]
        tokens = rng.integers(5, VOCAB, size)
        text = np.concatenate([[CLS], tokens[: size // 2], [SEP], tokens[size // 2 :], [SEP]])
        ids[row, : len(text)], mask[row, : len(text)] = text, True
    return ids, mask


def masked(
    ids: np.ndarray, mask: np.ndarray, keys: np.ndarray | None = None, **changed
) -> tuple[np.ndarray, np.ndarray]:
    settings = {"rate": 0.2, "max_ngram": 3, "vocab_size": VOCAB, "seed": 0, "epoch": 0} | changed
    keys = np.arange(len(ids)) if keys is None else keys
    return mask_tokens(ids, mask, special=SPECIAL, mask_id=MASK, keys=keys, **settings)


def test_classification_is_cross_entropy_with_smoothed_targets():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)).astype(np.float32), rng.integers(0, 5, 6)
    target = 0.9 * np.eye(5)[labels] + 0.1 / 5
    expected = -(target * log_softmax(logits)).sum(1).mean()
    assert float(cross_entropy(torch.tensor(logits), torch.tensor(labels), 0.1)) == pytest.approx(expected, rel=1e-5)
    assert float(accuracy(torch.tensor(logits), torch.tensor(labels))) == np.mean(logits.argmax(1) == labels)


def test_a_label_that_shares_the_highest_logit_counts_in_part():
    """In bf16 logits are often equal: constant ones must not look like knowledge."""
    logits = torch.tensor([[1.0, 1.0, 0.0, 1.0], [0.0, 2.0, 0.0, 0.0], [3.0, 1.0, 1.0, 1.0]])
    assert float(accuracy(logits, torch.tensor([1, 1, 1]))) == pytest.approx((1 / 3 + 1 + 0) / 3)


def test_distillation_ignores_rows_without_a_soft_label():
    rng = np.random.default_rng(1)
    logits, soft = rng.normal(size=(6, 5)).astype(np.float32), rng.dirichlet(np.ones(5), 6).astype(np.float32)
    soft[[1, 4]] = 0
    rows = [0, 2, 3, 5]
    expected = -(soft[rows] * log_softmax(logits[rows])).sum(1).mean()
    assert float(distillation_loss(torch.tensor(logits), torch.tensor(soft), torch.tensor(4))) == pytest.approx(
        expected, rel=1e-5
    )
    same = np.mean(logits[rows].argmax(1) == soft[rows].argmax(1))
    assert float(agreement(torch.tensor(logits), torch.tensor(soft), torch.tensor(4))) == pytest.approx(same)
    for settings in ({}, {"temperature": 3.0}, {"hard": 0.5}, {"hard": 1.0}):
        assert float(distillation_loss(torch.tensor(logits), torch.zeros(6, 5), torch.tensor(1), **settings)) == 0


@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_distillation_is_the_divergence_at_the_temperature_and_the_hard_labels_cross_entropy(hard, temperature):
    """By gradients, since the divergence lacks the labels' entropy: T^2 KL(p_T | q_T) of torch, both sides at T."""
    rng = np.random.default_rng(2)
    teacher = torch.tensor(rng.normal(size=(6, 5)), dtype=torch.float32)
    weights = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.5, 1.0])  # of rows; 0: no label
    ours = torch.tensor(rng.normal(size=(6, 5)), dtype=torch.float32)
    theirs = ours.clone()
    ours.requires_grad_()
    theirs.requires_grad_()
    soft = weights[:, None] * teacher.softmax(-1)
    distillation_loss(ours, soft, 5, hard=hard, temperature=temperature).backward()
    log_q, p = (theirs / temperature).log_softmax(-1), (teacher / temperature).softmax(-1)
    divergence = torch.nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
    best = torch.nn.functional.cross_entropy(theirs, teacher.argmax(-1), reduction="none")
    ((weights * ((1 - hard) * temperature**2 * divergence + hard * best)).sum() / 5).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"hard": 1.0}, {"hard": 0.5, "temperature": 2.0}])
def test_labels_below_the_threshold_teach_nothing_and_the_others_weigh_what_they_did(settings):
    """Whatever else is in the batch: its loss is a sum over the sure ones, divided by all that have a label."""
    rng = np.random.default_rng(3)
    logits = torch.tensor(rng.normal(size=(8, 5)), dtype=torch.float32)
    soft = torch.tensor(rng.dirichlet(np.full(5, 0.3), 8), dtype=torch.float32)
    soft[2] = 0
    weighted = soft * torch.tensor(rng.uniform(0.5, 2, (8, 1)), dtype=torch.float32)
    sure = soft.amax(-1) >= 0.6
    assert 1 < sure.sum() < 7
    rows = [slice(row, row + 1) for row in sure.nonzero().flatten().tolist()]
    expected = sum(distillation_loss(logits[row], weighted[row], 7, **settings) for row in rows)
    found = distillation_loss(logits, weighted, 7, min_confidence=0.6, **settings)
    torch.testing.assert_close(found, expected)


def both_directions(similarity: np.ndarray) -> float:
    return -(np.diag(log_softmax(similarity)).mean() + np.diag(log_softmax(similarity.T)).mean()) / 2


def test_contrast_is_the_mean_of_both_directions():
    rng = np.random.default_rng(2)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 7, 4)))
    similarity = a @ b.T * 14.0
    expected = both_directions(similarity)
    everything = torch.ones(7, dtype=torch.bool)
    found = info_nce(torch.tensor(a), torch.tensor(b), everything, torch.tensor(14.0))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(retrieval_accuracy(torch.tensor(a), torch.tensor(a), everything)) == 1


def test_the_temperature_of_the_contrast_learns_as_the_loss_changes_with_it():
    """Through head and loss its gradient is the slope of the loss, a central difference in float64."""
    torch.manual_seed(0)
    head = ContrastHead(5, 3, 4, temperature=0.07).double()
    text, frames, scale = head(torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64))
    info_nce(text, frames, torch.ones(7, dtype=torch.bool), scale).backward()
    cosines, step = (text @ frames.T).detach().numpy(), 1e-5
    above, below = (both_directions(cosines * np.exp(h) / 0.07) for h in (step, -step))
    assert float(head.log_scale.grad) == pytest.approx((above - below) / (2 * step), rel=1e-4)


def test_a_temperature_beyond_the_bound_counts_as_the_bound_and_learns_no_more():
    a, b = torch.nn.functional.normalize(torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    scale = torch.tensor(250.0, requires_grad=True)
    loss = info_nce(a, b, torch.ones(7, dtype=torch.bool), scale)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(both_directions(100 * (a @ b.T).double().numpy()), rel=1e-5)
    assert scale.grad == 0


def test_rows_left_out_of_the_contrast_neither_count_nor_are_negatives():
    """The same loss, accuracy and gradients as of the valid rows alone; nothing valid is a loss of zero."""
    rng = np.random.default_rng(3)
    a, b = (torch.tensor(x, requires_grad=True) for x in rng.normal(size=(2, 7, 4)))
    valid = torch.tensor([True, False, True, True, False, True, True])
    some, scale = (a[valid], b[valid]), torch.tensor(14.0)
    everything = torch.ones(5, dtype=torch.bool)
    loss, expected = info_nce(a, b, valid, scale), info_nce(*some, everything, scale)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, [a, b]), torch.autograd.grad(expected, [a, b]))
    assert retrieval_accuracy(a, b, valid) == retrieval_accuracy(*some, everything)
    nothing = info_nce(a, b, torch.zeros(7, dtype=torch.bool), scale)
    assert float(nothing.detach()) == 0
    assert not torch.autograd.grad(nothing, a)[0].any()


def test_matching_weighs_matched_and_mismatched_pairs_the_same():
    matched, mismatched = np.array([2.0, -1.0, 0.5, 3.0]), np.array([-2.0, 1.0])
    positive = -np.log(1 / (1 + np.exp(-matched))).mean()
    negative = -np.log(1 - 1 / (1 + np.exp(-mismatched))).mean()
    pairs = [  # one more of each that does not count
        Pairs(torch.tensor([*logits, 9.0]), torch.tensor([True] * len(logits) + [False]), torch.tensor(len(logits)))
        for logits in (matched, mismatched)
    ]
    assert float(matching_loss(*pairs)) == pytest.approx((positive + negative) / 2, rel=1e-6)
    assert float(matching_accuracy(*pairs)) == pytest.approx((3 / 4 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("share", "size", "count"), [(0.25, 2, 1), (1.0, 2, 2), (0.25, 9, 3), (1.0, 9, 9), (1.0, 1, 0)]
)
def test_a_video_is_never_mismatched_with_itself(share, size, count):
    rows, partners = mismatched_pairs(share, size)
    assert len(set(rows.tolist())) == len(set(partners.tolist())) == count
    assert not np.any(partners == rows)
    assert np.isin([*rows, *partners], np.arange(size)).all()


def test_mismatched_rows_are_spread_over_a_batch_sorted_by_length():
    rows, _ = mismatched_pairs(0.25, 128)
    assert rows.mean() == pytest.approx(63.5, abs=2)


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_every_process_has_some_of_the_mismatched_rows(world):
    """Processes take the rows of a batch in turn: at steps of four, four processes would leave all pairs to one."""
    rows, _ = mismatched_pairs(0.25, 128)
    shares = np.bincount(rows % world, minlength=world)
    assert shares.max() <= 2 * len(rows) / world


def test_frame_contrast_has_all_real_frames_as_candidates():
    rng = np.random.default_rng(3)
    guess, frames = rng.normal(size=(3, 6)).astype(np.float32), rng.normal(size=(3, 4, 6)).astype(np.float32)
    real = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    hidden = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    unit = frames[real] / np.linalg.norm(frames[real], axis=1, keepdims=True)
    losses = []
    for vector, row, place in zip(guess, *np.nonzero(hidden), strict=True):
        logits = unit @ (vector / np.linalg.norm(vector)) / 0.1
        own = int(real.flatten()[: row * 4 + place].sum())
        losses.append(-log_softmax(logits)[own])
    predicted, features, mask = (torch.tensor(x) for x in (guess, frames, real))
    places, total = torch.tensor(np.flatnonzero(hidden)), torch.tensor(3)
    found = frame_nce(predicted, places, features, mask, 0.1, total)
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)
    padding = features.masked_fill(~mask.unsqueeze(-1), 1e3)
    assert float(frame_nce(predicted, places, padding, mask, 0.1, total)) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(frame_nce(predicted[:0], places[:0], features, mask, 0.1, torch.tensor(1))) == 0


def test_hidden_frames_are_real_and_as_many_as_the_rate_says():
    real = np.arange(6)[None] < np.random.default_rng(0).integers(0, 7, 20_000)[:, None]
    hidden = mask_frames(real, 0.3, seed=0, epoch=0, keys=np.arange(20_000))
    assert not np.any(hidden & ~real)
    assert hidden.sum() / real.sum() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
def test_the_share_of_hidden_tokens_is_the_rate(rate):
    ids, mask = texts(4000, [40, 33], 48)
    _, chosen = masked(ids, mask, rate=rate)
    assert chosen.sum() / (mask & ~np.isin(ids, SPECIAL)).sum() == pytest.approx(rate, abs=0.002)


def test_hidden_tokens_become_mask_random_or_stay_80_10_10():
    ids, mask = texts(4000, [40], 48)
    hidden, chosen = masked(ids, mask)
    after, before = hidden[chosen], ids[chosen]
    assert np.mean(after == MASK) == pytest.approx(0.8, abs=0.01)
    assert np.mean(after == before) == pytest.approx(0.1, abs=0.01)
    assert np.mean((after != before) & (after != MASK)) == pytest.approx(0.1, abs=0.01)
    assert not np.isin(after[after != MASK], SPECIAL).any()
    assert np.array_equal(hidden[~chosen], ids[~chosen])


def test_a_random_token_is_any_ordinary_one():
    """Of 20 ordinary ids each comes as often as the others, by chi-squared; the text itself has none of them."""
    ids, mask = texts(4000, [40], 48)
    hidden, chosen = masked(np.where(ids > MASK, ids + VOCAB, ids), mask, vocab_size=25)
    drawn = np.bincount(hidden[chosen & (hidden < VOCAB) & (hidden != MASK)], minlength=25)[5:]
    expected = drawn.sum() / 20
    assert expected > 100
    assert ((drawn - expected) ** 2 / expected).sum() < 19 + 4 * np.sqrt(2 * 19)


def test_special_tokens_and_padding_are_never_hidden_and_every_text_loses_a_token():
    ids, mask = texts(3000, [0, 1, 2, 3, 30], 40)
    hidden, chosen = masked(ids, mask, rate=0.01)
    assert not chosen[np.isin(ids, SPECIAL) | ~mask].any()
    has_text = (mask & ~np.isin(ids, SPECIAL)).any(1)
    assert np.array_equal(chosen.any(1), has_text)
    assert np.array_equal(hidden[~has_text], ids[~has_text])


def test_masks_come_in_spans_up_to_max_ngram():
    ids, mask = texts(3000, [46], 50)
    single, spans = (masked(ids, mask, rate=0.1, max_ngram=n)[1] for n in (1, 4))
    neighbours = [float((c[:, 1:] & c[:, :-1]).sum() / c.sum()) for c in (single, spans)]
    assert neighbours[0] < 0.12  # chance
    assert neighbours[1] > 0.35


@pytest.mark.parametrize("longest", [1, 3, 4])
def test_a_span_of_n_tokens_is_as_likely_as_one_over_n(longest, monkeypatch):
    """The first span is put at the start of the text and all others at its end: what is hidden at the start is it."""
    (ids, mask), places = texts(20_000, [40], 48), np.linspace(1, 0.1, 48)
    places[1] = 0
    monkeypatch.setattr(
        "framefold.objectives.mlm.uniforms",
        lambda stream, *key: np.tile(places, (20_000, 1)) if stream == Stream.PLACES else uniforms(stream, *key),
    )
    _, chosen = masked(ids, mask, rate=6 / 40, max_ngram=longest)
    lengths = chosen[:, 1:7].cumprod(axis=1).sum(axis=1)
    odds = np.array([1 / n if n <= longest else 0 for n in range(1, 7)])
    odds /= odds.sum()
    shares = np.bincount(lengths, minlength=7)[1:] / 20_000
    assert np.all(np.abs(shares - odds) <= 4 * np.sqrt(odds * (1 - odds) / 20_000))


def hidden_by_hand(maskable: np.ndarray, turns: np.ndarray, chances: np.ndarray, longest: int, count: int) -> list[int]:
    """Places of `count` tokens of one text, span by span by turn, each to its length or to the end of its segment."""
    hidden: list[int] = []
    for start in sorted(np.flatnonzero(maskable), key=lambda place: turns[place]):
        length, left = 1, chances[start] * sum(1 / n for n in range(1, longest + 1))
        while left >= 1 / length:
            left -= 1 / length
            length += 1
        for place in range(start, min(start + length, len(maskable))):
            if not maskable[place]:
                break
            if place not in hidden:
                hidden.append(place)
    return sorted(hidden[:count])


@pytest.mark.parametrize("longest", [1, 3, 5])
def test_spans_are_laid_down_one_by_one_within_a_segment(longest):
    """The same random numbers by a plain loop: at any rate the same tokens, and no span goes on beyond a [SEP]."""
    (ids, mask), keys = texts(200, [5, 20, 12, 31], 36), np.arange(200)
    maskable = mask & ~np.isin(ids, SPECIAL)
    turns, chances = (uniforms(stream, 0, 0, keys, 36) for stream in (Stream.PLACES, Stream.LENGTHS))
    rounding = uniforms(Stream.COUNT, 0, 0, keys, 1)[:, 0]
    for rate in (0.1, 0.3, 0.6):
        _, chosen = masked(ids, mask, rate=rate, max_ngram=longest)
        for row in range(200):
            count = max(int(rate * maskable[row].sum() + rounding[row]), 1)
            expected = hidden_by_hand(maskable[row], turns[row], chances[row], longest, count)
            assert np.flatnonzero(chosen[row]).tolist() == expected


def test_masks_of_a_video_do_not_depend_on_its_neighbours_or_padding():
    ids, mask = texts(32, [5, 20, 12], 24)
    keys = np.random.default_rng(0).integers(-(2**62), 2**62, 32)
    hidden, chosen = masked(ids, mask, keys)
    alone = masked(ids[8:9, :16], mask[8:9, :16], keys[8:9])
    assert np.array_equal(hidden[8, :16], alone[0][0])
    assert np.array_equal(chosen[8, :16], alone[1][0])


def test_masks_change_with_epoch_seed_and_video():
    ids, mask = texts(1, [40], 48)
    ids, mask = np.repeat(ids, 2, 0), np.repeat(mask, 2, 0)
    base = masked(ids, mask)[1]
    assert not np.array_equal(base[0], base[1])
    assert not np.array_equal(base, masked(ids, mask, epoch=1)[1])
    assert not np.array_equal(base, masked(ids, mask, seed=1)[1])


def test_masking_costs_less_than_30_microseconds_a_video():
    ids, mask = texts(128, [42], 48)
    masked(ids, mask)
    best = min(_seconds(lambda: masked(ids, mask)) for _ in range(20))
    assert best / 128 < 30e-6


def _seconds(action) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def test_masked_token_loss_is_the_mean_over_chosen_positions():
    rng = np.random.default_rng(5)
    logits, targets = rng.normal(size=(9, 11)).astype(np.float32), rng.integers(0, 11, 9)
    expected = -log_softmax(logits)[np.arange(9), targets].mean()
    found = masked_token_loss(torch.tensor(logits), torch.tensor(targets), torch.tensor(9))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(masked_token_loss(torch.zeros(0, 11), torch.zeros(0, dtype=torch.int64), torch.tensor(1))) == 0
