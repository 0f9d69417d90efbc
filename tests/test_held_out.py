"""What pretraining tells of held-out videos: .venv/bin/python -m pytest tests/test_held_out.py"""

from pathlib import Path

import numpy as np
import pytest
import torch
from stores import CATEGORIES, SPECIAL, VOCAB, make_project
from test_pretraining import ALONE, ARCHS, build

from framefold.data.batches import Batch, EpochBatches, VideoDataset
from framefold.data.tokens import SpecialTokens
from framefold.data.videos import open_videos
from framefold.evaluation.alive import pretraining
from framefold.params.base import load
from framefold.params.models import StudentParams
from framefold.params.pretrain import PretrainParams
from framefold.training.held_out import EVERY_TEXT, TOGETHER, measure
from framefold.training.pretraining import PretrainingModel, found_among
from framefold.training.views import Masking, MismatchedVideos

CPU = torch.device("cpu")
N = 24


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)


def held_out() -> VideoDataset:
    videos = open_videos("unlabeled", "small")
    soft = np.random.default_rng(0).dirichlet(np.ones(len(CATEGORIES)), len(videos)).astype(np.float16)
    return videos.dataset(np.arange(N), load(StudentParams).inputs, soft=soft)


def masking() -> Masking:
    return Masking(load(PretrainParams).masking, SpecialTokens(**SPECIAL, size=VOCAB))


def questions() -> Batch:
    """Those of `measure`, which finds room for all in one batch."""
    assert N <= TOGETHER
    paired = MismatchedVideos(held_out(), EVERY_TEXT)
    return EpochBatches(paired, TOGETHER, seed=0, epoch=0, shuffle=False, transform=masking())[0]


def learned(arch: str, steps: int = 150) -> PretrainingModel:
    """By heart, from the very batch that is asked about."""
    model, batch = build(arch).train(), questions()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch, ALONE)[0].backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("arch", ARCHS)
def test_every_objective_answers_better_than_a_guess_once_it_has_learned(arch: str) -> None:
    """And not before, but for luck: the checks of alive.json can fail."""
    fresh, able = (
        pretraining(arch, [measure(model, held_out(), masking(), CPU)]) for model in (build(arch), learned(arch))
    )
    objectives = {"masked_tokens", "matching"} | ({"contrast"} if arch == "dual_stream" else {"masked_frames"})
    assert fresh.keys() == able.keys() == {f"{name}/{arch}" for name in objectives}
    assert all(check["ok"] for check in able.values()), able
    assert not any(check["ok"] for check in fresh.values()), fresh


@pytest.mark.parametrize("arch", ARCHS)
def test_the_same_questions_whatever_was_drawn_before(arch: str) -> None:
    model = build(arch)
    first = measure(model, held_out(), masking(), CPU)
    torch.manual_seed(5)
    assert measure(model, held_out(), masking(), CPU) == first


def test_what_is_off_is_not_asked() -> None:
    report = measure(build("single_stream", {"mfm": 1.0}), held_out(), masking(), CPU)
    assert {name.partition("_")[0] for name in report if name.endswith("_asked")} == {"mfm"}


def test_a_guess_of_tokens_is_the_most_frequent_of_the_hidden_ones() -> None:
    tokens = questions()["token_targets"].tolist()
    report = measure(build("single_stream"), held_out(), masking(), CPU)
    assert report["mlm_asked"] == len(tokens)
    assert report["mlm_by_guess"] == max(map(tokens.count, tokens)) / len(tokens)


def test_the_nearest_real_candidate_is_the_answer() -> None:
    """By loops; one vector is nowhere near its own, and one's own is not real."""
    rng = np.random.default_rng(1)
    candidates = rng.normal(size=(7, 4)).astype(np.float32)
    real, places = np.array([1, 1, 1, 0, 1, 1, 1], bool), [0, 2, 3, 4, 6]
    vectors = 3 * candidates[places]
    vectors[3] = -vectors[3]
    right = []
    for vector, place in zip(vectors, places, strict=True):
        cosines = {i: float(vector @ c / np.linalg.norm(c)) for i, c in enumerate(candidates) if real[i]}
        right.append(max(cosines, key=cosines.__getitem__) == place)
    found = found_among(*map(torch.from_numpy, (vectors, candidates, real)), torch.tensor(places))
    assert found.right.tolist() == right == [True, True, False, False, True]
    assert found.by_guess.tolist() == pytest.approx([1 / 6] * 5)


def test_frames_are_asked_of_what_was_hidden() -> None:
    """A head that knows the hidden frames is always right, one that says the opposite hardly ever."""
    model, batch = build("single_stream", {"mfm": 1.0}).eval(), questions()
    frames = batch["frames"].flatten(0, 1)
    model.mfm_head = torch.nn.Module()  # type: ignore[assignment]
    model.mfm_head.forward = lambda states, places: frames[places]  # type: ignore[union-attr,method-assign]
    answers = model.answers(batch)["mfm"]
    assert len(answers.right) == len(batch["frame_places"])
    assert answers.right.min() == 1
    model.mfm_head.forward = lambda states, places: -frames[places]  # type: ignore[union-attr,method-assign]
    assert model.answers(batch)["mfm"].right.mean() < 0.2


@pytest.mark.parametrize("arch", ARCHS)
def test_a_head_that_always_says_the_same_matches_half_of_the_pairs(arch: str) -> None:
    model, batch = build(arch, {"itm": 1.0}).eval(), questions()
    for bias in (-9.0, 9.0):
        model.itm_head.out.weight.data.zero_()
        model.itm_head.out.bias.data.fill_(bias)
        right = model.answers(batch)["itm"].right
        assert 0 < len(right) <= 2 * N
        assert float(right.mean()) == 0.5


def test_contrast_asks_in_both_directions_videos_that_have_both() -> None:
    model, batch = build("dual_stream", {"itc": 1.0}).eval(), questions()
    batch["frame_mask"][3] = False
    vectors = model.contrast_vectors(batch)
    text, frames = vectors.text.detach(), vectors.frames.detach()
    both = [i for i in range(N) if batch["frame_mask"][i].any() and batch["text_mask"][i].sum() > 2]
    assert 3 not in both
    sides = (text, frames), (frames, text)
    right = [[max(both, key=lambda j: float(a[i] @ b[j])) == i for i in both] for a, b in sides]
    assert right[0] != right[1]
    answers = model.answers(batch)["itc"]
    assert answers.right.tolist() == [sum(pair) / 2 for pair in zip(*right, strict=True)]
    assert answers.by_guess.tolist() == pytest.approx([1 / len(both)] * len(both))


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("n", [1, 12])
def test_videos_without_frames_are_measured_too(arch: str, n: int) -> None:
    """And a single one: what cannot be asked of them is not told, all else is."""
    videos = open_videos("unlabeled", "small")
    bare = np.flatnonzero(videos.features.counts == 0)[:n]
    assert len(bare) == n
    soft = np.random.default_rng(0).dirichlet(np.ones(len(CATEGORIES)), len(videos)).astype(np.float16)
    report = measure(build(arch), videos.dataset(bare, load(StudentParams).inputs, soft=soft), masking(), CPU)
    assert {name.partition("_")[0] for name in report if name.endswith("_asked")} == {"mlm"}
    assert report["held_out"] == n


ASKED = {"itm_accuracy": 0.6, "itm_by_guess": 0.5, "itm_asked": 400}


def test_variants_that_answer_the_same_questions_are_no_more_of_them() -> None:
    assert pretraining("x", [ASKED]) == pretraining("x", [ASKED] * 3)
    assert pretraining("x", [ASKED])["matching/x"] == {"value": 0.6, "against": 0.55, "ok": True}


def test_nothing_is_checked_where_nobody_could_pass() -> None:
    assert pretraining("x", [ASKED | {"itm_asked": 4}]) == {}
    assert pretraining("x", [ASKED | {"itm_asked": 5}]).keys() == {"matching/x"}
