"""What pretraining makes of a batch where it is made: hard pairs, missing modalities: pytest tests/test_views.py"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stores import CATEGORIES, SPECIAL, VOCAB, make_project
from test_pretraining import ALONE, build

from framefold.data.batches import Batch, EpochBatches, VideoDataset
from framefold.data.tokens import SpecialTokens
from framefold.data.videos import open_videos
from framefold.objectives.itm import mismatched_pairs, similar_partners
from framefold.objectives.mlm import mask_tokens
from framefold.params.base import UserError, load, validate
from framefold.params.models import StudentParams
from framefold.params.pretrain import PretrainParams
from framefold.training.held_out import measure
from framefold.training.views import Masking, MismatchedVideos, ModalityDrop, masking_of, training_views

TOKENS = SpecialTokens(**SPECIAL, size=VOCAB)
ARCHS = ["single_stream", "dual_stream"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pool(rows: int = 160) -> VideoDataset:
    videos = open_videos("unlabeled", "small")
    soft = np.random.default_rng(0).dirichlet(np.ones(len(CATEGORIES)), len(videos)).astype(np.float16)
    return videos.dataset(np.arange(rows), load(StudentParams).inputs, soft=soft)


def masking(**changes: Any) -> Any:
    return load(PretrainParams).masking.model_copy(update=changes)


# hard negatives ------------------------------------------------------------------------------------------------------


def looped_odds(means: np.ndarray, has: np.ndarray, row: int, temperature: float, bound: float) -> np.ndarray:
    """The probability of each partner of one row, pair by pair."""
    centre = np.mean([means[i] for i in range(len(means)) if has[i]], axis=0)
    odds = np.zeros(len(means))
    for other in range(len(means)):
        one, two = means[row] - centre, means[other] - centre
        cosine = one @ two / (np.linalg.norm(one) * np.linalg.norm(two))
        if other != row and has[other] and has[row] and cosine <= bound:
            odds[other] = np.exp(cosine / temperature)
    return odds / odds.sum() if odds.any() else odds


@pytest.mark.parametrize("temperature", [0.02, 0.2, 5.0])
def test_partners_are_drawn_by_the_softmax_of_similarities(temperature: float) -> None:
    """Against probabilities from a plain loop, by the share of 20,000 evenly spread chances that falls on each."""
    rng = np.random.default_rng(0)
    means, has = rng.normal(size=(7, 5)) + 3, np.array([1, 1, 0, 1, 1, 1, 1], bool)
    means[4] = means[0] + 0.01  # a near duplicate
    chance = (np.arange(20_000) + 0.5) / 20_000
    for row in range(7):
        rows = np.full(len(chance), row)
        drawn = similar_partners(means, has, rows, np.full(len(chance), 6), chance, temperature, 0.9)
        expected = looped_odds(means, has, row, temperature, 0.9)
        if not has[row]:
            assert set(drawn.tolist()) == {6}
        else:
            assert np.bincount(drawn, minlength=7) / 20_000 == pytest.approx(expected, abs=2e-4)
    assert looped_odds(means, has, 0, temperature, 0.9)[4] == 0


def test_where_nobody_is_left_partners_stay() -> None:
    """All other videos are copies, or there are none with frames."""
    means, rows, partners = np.ones((4, 3)), np.array([0, 2]), np.array([1, 3])
    for has in (np.ones(4, bool), np.array([True, False, False, False]), np.zeros(4, bool)):
        bound = -0.5 if has.all() else 0.99  # copies have no direction once their mean is taken off
        found = similar_partners(means, has, rows, partners, np.array([0.1, 0.9]), 0.1, bound)
        assert found.tolist() == partners.tolist()


def paired(videos: VideoDataset, positions: np.ndarray, hard: float, part: slice = slice(None), **more: float) -> Batch:
    params = load(PretrainParams).mismatched.model_copy(update={"share": 0.5, "hard": hard} | more)
    return MismatchedVideos(videos, params).batch(positions, (0, 3), part)


def test_without_hard_negatives_pairs_are_half_a_batch_apart(project: Path) -> None:
    videos, positions = pool(), np.arange(40)
    batch = paired(videos, positions, 0.0)
    rows = batch["pair_rows"].tolist()
    assert len(set(rows)) == len(rows) == 20
    assert np.array_equal(batch["pair_frames"], videos.frames(np.array([(row + 20) % 40 for row in rows]), (0, 3))[0])


def likeness(batch: Batch) -> float:
    """Mean cosine of a text's own mean frame with the one it is shown with, the batch's mean taken off."""

    def mean(frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        unit = torch.nn.functional.normalize(frames, dim=-1)
        return (unit * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    own, other = mean(batch["frames"], batch["frame_mask"]), mean(batch["pair_frames"], batch["pair_frame_mask"])
    both = batch["frame_mask"].any(1)[batch["pair_rows"]] & batch["pair_frame_mask"].any(1)
    centre = own[batch["frame_mask"].any(1)].mean(0)
    return float(torch.cosine_similarity(own[batch["pair_rows"]] - centre, other - centre)[both].mean())


def test_hard_negatives_are_alike_and_never_near_duplicates(project: Path) -> None:
    """The colder, the more alike; never the video itself; above the bound nobody is taken."""
    videos, positions = pool(), np.arange(64)
    easy, hard, harder = (
        likeness(paired(videos, positions, hard, temperature=temperature))
        for hard, temperature in ((0.0, 0.1), (1.0, 0.2), (1.0, 0.02))
    )
    assert easy + 0.3 < hard < harder
    batch = paired(videos, positions, 1.0, temperature=0.02)
    own = [batch["frames"][row][batch["frame_mask"][row]] for row in batch["pair_rows"].tolist()]
    shown = [frames[mask] for frames, mask in zip(batch["pair_frames"], batch["pair_frame_mask"], strict=True)]
    assert not [one for one, other in zip(own, shown, strict=True) if len(one) and torch.equal(one, other)]
    assert likeness(paired(videos, positions, 1.0, temperature=0.02, max_similarity=0.2)) < 0.2


def test_the_length_of_a_frame_says_nothing_about_likeness(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of which every second is 64 times as long have the partners that they had."""
    videos, positions = pool(), np.arange(64)
    params = load(PretrainParams).mismatched.model_copy(update={"hard": 1.0, "temperature": 0.1})
    pairs, (rows, partners) = MismatchedVideos(videos, params), mismatched_pairs(1.0, 64)
    expected = pairs._some_hard(positions, rows, partners, (0, 0))
    frames, mask = videos.frames(positions, (0, 0))
    frames[:, ::2] *= 64
    monkeypatch.setattr(videos, "frames", lambda *of: (frames, mask))
    assert np.array_equal(pairs._some_hard(positions, rows, partners, (0, 0)), expected)


def test_the_share_of_hard_pairs_is_the_param(project: Path) -> None:
    """A pair is hard by its video's own draw: over many epochs so many differ from those half a batch apart."""
    videos, positions = pool(), np.arange(64)
    rows, partners = mismatched_pairs(0.5, 64)
    params = load(PretrainParams).mismatched.model_copy(update={"hard": 0.3, "temperature": 50.0, "share": 0.5})
    pairs = MismatchedVideos(videos, params)
    has = videos.features.counts[videos.rows[positions]] > 0
    changed = [pairs._some_hard(positions, rows, partners, (0, epoch)) != partners for epoch in range(60)]
    share = np.array(changed)[:, has[rows]].mean()
    by_chance = 1 / (has.sum() - 1)  # the hot draw falls on the same partner
    assert share == pytest.approx(0.3 * (1 - by_chance), abs=0.03)


def test_parts_of_processes_have_the_pairs_of_the_whole_batch(project: Path) -> None:
    videos, positions = pool(), np.arange(40)
    whole = paired(videos, positions, 1.0)
    parts = [paired(videos, positions, 1.0, slice(rank, None, 3)) for rank in range(3)]
    found = {
        int(part["row"][row]): frames[mask]
        for part in parts
        for row, frames, mask in zip(part["pair_rows"], part["pair_frames"], part["pair_frame_mask"], strict=True)
    }
    pairs = zip(whole["pair_rows"], whole["pair_frames"], whole["pair_frame_mask"], strict=True)
    expected = {int(whole["row"][row]): frames[mask] for row, frames, mask in pairs}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[row], frames) for row, frames in expected.items())


# modality drop -------------------------------------------------------------------------------------------------------


def test_drop_makes_what_a_video_without_the_modality_is(project: Path) -> None:
    """[CLS] [SEP] and no more, or no frames; the rest of a batch stays, and a video with one modality keeps it."""
    videos = pool()
    batch = videos.batch(np.arange(160))
    dropped = ModalityDrop(0.3, 0.4, TOKENS)(dict(batch), 0, 0)
    no_text, had_frames = without_text(dropped) & ~without_text(batch), batch["frame_mask"].any(1)
    no_frames = had_frames & ~dropped["frame_mask"].any(1)
    assert 30 < no_text.sum() < 60 < no_frames.sum() + 20 < 90
    assert not (no_text & no_frames).any()
    assert not (no_text & ~had_frames).any()
    bare = torch.tensor([SPECIAL["cls"], SPECIAL["sep"]] + [SPECIAL["pad"]] * (batch["input_ids"].shape[1] - 2))
    assert (dropped["input_ids"][no_text] == bare).all()
    assert (dropped["text_mask"][no_text].sum(1) == 2).all()
    assert not dropped["frames"][no_frames].any()
    for names, rows in ((("input_ids", "text_mask"), ~no_text), (("frames", "frame_mask"), ~no_frames)):
        for name in names:
            assert torch.equal(dropped[name][rows], batch[name][rows])
    assert all(torch.equal(dropped[name], batch[name]) for name in ("key", "soft", "row", "index", "label"))


def test_videos_without_text_keep_their_frames(project: Path) -> None:
    batch = pool().batch(np.arange(30))
    batch["input_ids"], batch["text_mask"] = torch.tensor([[2, 3]] * 30), torch.ones(30, 2, dtype=torch.bool)
    dropped = ModalityDrop(0.5, 0.5, TOKENS)(dict(batch), 0, 0)
    assert torch.equal(dropped["frame_mask"], batch["frame_mask"])
    assert torch.equal(dropped["input_ids"], batch["input_ids"])


def test_drops_are_as_frequent_as_told_and_anew_in_each_epoch(project: Path) -> None:
    videos = pool()
    batch, drop = videos.batch(np.arange(160)), ModalityDrop(0.1, 0.3, TOKENS)
    both = batch["frame_mask"].any(1) & (batch["text_mask"].sum(1) > 2)
    results = [drop(dict(batch), 0, epoch) for epoch in range(80)]
    text = torch.stack([without_text(result)[both] for result in results]).double()
    frames = torch.stack([~result["frame_mask"].any(1)[both] for result in results]).double()
    error = 4 * np.sqrt(0.25 / text.numel())
    assert abs(float(text.mean()) - 0.1) < error
    assert abs(float(frames.mean()) - 0.3) < error
    assert 0 < text.mean(0).max() < 0.4  # no video has lost it for good


def test_drops_depend_on_the_video_alone(project: Path) -> None:
    videos, drop = pool(), ModalityDrop(0.4, 0.4, TOKENS)
    whole = drop(videos.batch(np.arange(160)), 0, 1)
    some = drop(videos.batch(np.array([50, 7, 121])), 0, 1)
    assert torch.equal(without_text(some), without_text(whole)[[50, 7, 121]])
    assert torch.equal(some["frame_mask"].sum(1), whole["frame_mask"].sum(1)[[50, 7, 121]])


def without_text(batch: Batch) -> torch.Tensor:
    """[CLS] [SEP] and no more, by drop or by nature, (B,) bool."""
    return batch["text_mask"].sum(1) == 2


def views(videos: VideoDataset, **changes: Any) -> Batch:
    params = load(PretrainParams)
    pairs = MismatchedVideos(videos, params.mismatched)
    return EpochBatches(pairs, 64, seed=0, epoch=0, transform=training_views(masking(**changes), videos))[0]


@pytest.mark.parametrize("arch", ARCHS)
def test_pairs_of_videos_that_lost_a_modality_do_not_count(project: Path, arch: str) -> None:
    """Matching and contrast are those of the other videos, whatever the model makes of a missing modality."""
    model, batch = build(arch).eval(), views(pool(), text_drop=0.3, frames_drop=0.3)
    lost = without_text(batch) | ~batch["frame_mask"].any(1)
    assert 20 < lost.sum() < 60
    _, parts = model(batch, ALONE)
    changed = dict(batch)
    changed["input_ids"] = torch.where(lost.unsqueeze(1) & (batch["input_ids"] > 4), 9, batch["input_ids"])
    changed["input_ids"][without_text(batch), 0] = 11
    assert not torch.equal(changed["input_ids"], batch["input_ids"])
    _, other = model(changed, ALONE)
    names = ["loss_itm", "itm_accuracy"] + (["loss_itc", "itc_accuracy"] if arch == "dual_stream" else [])
    for name in names:
        torch.testing.assert_close(parts[name], other[name], rtol=1e-6, atol=1e-6)
    assert parts["loss_distillation"] != other["loss_distillation"]  # it does learn from them


def test_hidden_tokens_and_frames_are_of_what_is_left(project: Path) -> None:
    batch = views(pool(), text_drop=0.4, frames_drop=0.4)
    width, most = batch["input_ids"].shape[1], batch["frames"].shape[1]
    assert not without_text(batch)[batch["token_places"] // width].any()
    assert batch["frame_mask"].flatten()[batch["frame_places"]].all()
    assert batch["frame_mask"].any(1)[batch["frame_places"] // most].all()


def test_without_drops_the_views_are_the_masks_alone(project: Path) -> None:
    videos = pool()
    assert training_views(masking(), videos) == masking_of(masking(), videos) == Masking(masking(), TOKENS)
    one, other = views(videos), views(videos, text_drop=1e-12)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_drops_nothing(project: Path) -> None:
    """What is measured on videos kept aside does not depend on what training drops."""
    videos = pool(40)

    model = build("single_stream")
    reports = [
        measure(model, videos, masking_of(masking(text_drop=drop), videos), torch.device("cpu")) for drop in (0.0, 0.9)
    ]
    assert reports[0] == reports[1]


def test_no_video_can_lose_both(project: Path) -> None:
    content = load(PretrainParams).model_dump()
    content["masking"] |= {"text_drop": 0.6, "frames_drop": 0.6}
    with pytest.raises(UserError, match="no video loses both"):
        validate(PretrainParams, content, "pretrain", "params.yaml")


@pytest.mark.parametrize("unit", ["token", "ngram"])
@pytest.mark.parametrize("longest", [2, 6])
def test_spans_are_as_long_as_params_say(project: Path, unit: str, longest: int) -> None:
    """Those of `mask_tokens`, whose lengths have tests of their own."""
    batch = views(pool(), unit=unit, max_ngram=longest, rate=0.35)
    length = longest if unit == "ngram" else 1
    special = np.array(TOKENS.ids)
    expected, others = (
        mask_tokens(
            batch["input_ids"].numpy(),
            batch["text_mask"].numpy(),
            special=special,
            mask_id=TOKENS.mask,
            vocab_size=VOCAB,
            rate=0.35,
            max_ngram=most,
            seed=0,
            epoch=0,
            keys=batch["key"].numpy(),
        )[1]
        for most in (length, length + 1)
    )
    assert batch["token_places"].tolist() == np.flatnonzero(expected).tolist() != np.flatnonzero(others).tolist()


# frame modelling -----------------------------------------------------------------------------------------------------


@pytest.mark.medium
@pytest.mark.parametrize("arch", ARCHS)
def test_candidates_of_hidden_frames_are_the_real_frames_of_the_batch(project: Path, arch: str) -> None:
    """The model's loss against a loop over hidden frames; padding, which may hold anything, is never a candidate."""
    model, batch = build(arch, {"mfm": 1.0}).eval(), views(pool(), frames_drop=0.3)
    batch["frames"] = batch["frames"].masked_fill(~batch["frame_mask"].unsqueeze(-1), 50.0)
    _, parts = model(batch, ALONE)
    states = model._hidden_view(batch)[1]
    guesses = model.mfm_head(states, batch["frame_places"]).detach().numpy()
    real = [(i, f) for i in range(len(batch["frames"])) for f in np.flatnonzero(batch["frame_mask"][i]).tolist()]
    losses, most = [], batch["frames"].shape[1]
    for guess, place in zip(guesses, batch["frame_places"].tolist(), strict=True):
        scores = [
            cosine(guess, batch["frames"][i, f].numpy()) / load(PretrainParams).contrast.temperature for i, f in real
        ]
        own = real.index((place // most, place % most))
        losses.append(np.log(np.exp(np.array(scores) - max(scores)).sum()) + max(scores) - scores[own])
    assert float(parts["loss_mfm"]) == pytest.approx(np.mean(losses), rel=1e-4)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
