"""Labels by the nearest labelled videos. Run: .venv/bin/python -m pytest tests/test_neighbours.py"""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.neighbors import KNeighborsClassifier
from stores import CATEGORIES, make_project, make_teachers, small_params
from tiny_project import run_stage

from framefold.data.folds import HOLDOUT
from framefold.data.pseudo_labels import MEAN, open_pseudo_labels
from framefold.data.videos import open_labeled, open_videos
from framefold.inference.committee import Committee, teachers
from framefold.inference.neighbours import LabelledStates, Neighbours
from framefold.inference.predict import block_logits, predict_logits
from framefold.inference.predictions import softmax
from framefold.inference.processes import Processes
from framefold.inference.pseudo_labelling import Labeller
from framefold.params.base import load
from framefold.params.teacher import TeacherParams
from framefold.scratch import Scratch

CPU = torch.device("cpu")
SETTINGS = {"batch_size": 16, "device": CPU, "precision": "fp32"}


def weights(distances: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distances, 1e-6)


@pytest.mark.parametrize("k", [1, 7])
def test_votes_are_those_of_sklearn(k):
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(300, 9)).astype(np.float32), rng.integers(0, 5, 300)
    queries = (3 * rng.normal(size=(600, 9))).astype(np.float32)  # more than are compared at a time, of any length
    reference = KNeighborsClassifier(k, metric="cosine", weights=weights).fit(states, labels)
    unit = torch.nn.functional.normalize(torch.from_numpy(states), dim=-1)
    found = Neighbours(unit, torch.from_numpy(labels), k, n_classes=6).vote(queries)
    assert np.allclose(found[:, :5], reference.predict_proba(queries), atol=1e-5)
    assert not found[:, 5].any()


def test_fewer_videos_than_neighbours_all_vote_even_when_they_point_away():
    few = Neighbours(torch.eye(2), torch.tensor([0, 2]), k=5, n_classes=3)
    found = few.vote(np.array([[3, 1], [-1, -1]], np.float32))
    assert np.allclose(found, [[0.75, 0, 0.25], [0.5, 0, 0.5]])


@pytest.fixture
def committee(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Committee:
    params = small_params()
    make_project(tmp_path, params)
    make_teachers(tmp_path, params)
    monkeypatch.chdir(tmp_path)
    return teachers(load(TeacherParams))


def labelled_states(committee: Committee) -> LabelledStates:
    videos = open_videos("labeled", "small")
    dataset = videos.dataset(np.arange(len(videos)), committee.inputs)
    states = LabelledStates(Path("states"), open_labeled(videos), dataset, SETTINGS)
    with Scratch("pseudo_label", {}) as scratch:
        states.compute(committee.load(CPU), scratch, Processes("pseudo_label"))
        scratch.finish()
    return states


def test_a_teachers_neighbours_are_the_videos_it_was_trained_on(committee):
    states, trained = labelled_states(committee), committee.trained_folds(open_labeled(), leaky=False)
    found = states.neighbours(committee.load(CPU), trained, 3, len(CATEGORIES))
    labeled = states.labeled
    for teacher, (own,) in found.items():
        rows = (labeled.fold != HOLDOUT) & (labeled.fold % 3 != teacher)
        expected = torch.nn.functional.normalize(torch.from_numpy(states.states(teacher, 0)[rows]), dim=-1)
        assert torch.equal(own.states, expected)
        assert own.labels.tolist() == labeled.label[rows].tolist()


def test_states_are_what_the_head_reads_and_are_kept_over_an_interruption(committee):
    states, models = labelled_states(committee), committee.load(CPU)
    kept = {path: path.stat().st_mtime_ns for path in Path("states").rglob("block-*.npy")}
    assert kept.keys()
    assert labelled_states(committee).states(0, 0).shape == states.states(0, 0).shape
    assert kept == {path: path.stat().st_mtime_ns for path in Path("states").rglob("block-*.npy")}
    with torch.inference_mode():
        logits = models[1][0].head(torch.from_numpy(states.states(1, 0))).numpy()
    assert np.allclose(logits, predict_logits(models[1][0], states.dataset, 16, "cpu"), atol=1e-5)


def test_votes_out_of_fold_come_from_the_teacher_that_never_saw_the_video(committee):
    states, trained = labelled_states(committee), committee.trained_folds(open_labeled(), leaky=False)
    voters = states.neighbours(committee.load(CPU), trained, 3, len(CATEGORIES))
    truth, votes = states.out_of_fold(voters, committee.n_folds)
    fold, label = states.labeled.fold, states.labeled.label
    assert truth.tolist() == [one for t in range(3) for one in label[(fold != HOLDOUT) & (fold % 3 == t)]]
    first = np.flatnonzero((fold != HOLDOUT) & (fold % 3 == 0))
    assert np.allclose(votes[: len(first)], voters[0][0].vote(states.states(0, 0)[first]))


@pytest.mark.parametrize("alone", [True, False])
def test_labels_are_votes_or_the_mean_of_votes_and_probabilities(committee, alone):
    models, states = committee.load(CPU), labelled_states(committee)
    voters = states.neighbours(models, committee.trained_folds(open_labeled(), leaky=False), 3, len(CATEGORIES))
    rows, pool = np.arange(40), open_videos("unlabeled", "small")
    dataset = pool.dataset(np.arange(len(pool)), committee.inputs)
    found = Labeller(models, dataset, 2.0, SETTINGS, voters, alone).probs(rows)
    with torch.inference_mode():
        batch = dataset.batch(rows)
        votes = np.stack([voters[t][0].vote(models[t][0].encode(batch).pooled.numpy()) for t in range(3)])
    own = [softmax(part / 2) for part in block_logits([models[t][0] for t in range(3)], dataset, rows, **SETTINGS)]
    assert np.allclose(found, votes if alone else (votes + np.stack(own)) / 2, atol=1e-5)
    plain = Labeller(models, dataset, 2.0, SETTINGS, None, alone=False).probs(rows)
    assert np.array_equal(plain, np.stack(own))


@pytest.mark.parametrize("source", ["teachers", "neighbours", "both"])
def test_the_stage_labels_by_the_source_of_params(committee, source):
    """Videos that all teachers label get the mean of what each says, by its head, by its k neighbours, or by both."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["pseudo_label"] |= {"source": source, "k": 3, "temperature": 2.0}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    run_stage("pseudo_label")
    models, states = committee.load(CPU), labelled_states(committee)
    voters = states.neighbours(models, committee.trained_folds(open_labeled(), leaky=False), 3, len(CATEGORIES))
    pool = open_videos("unlabeled", "small")
    dataset, rows = pool.dataset(np.arange(len(pool)), committee.inputs), np.arange(len(pool))
    each = Labeller(
        models, dataset, 2.0, SETTINGS, None if source == "teachers" else voters, source == "neighbours"
    ).probs(rows)
    by_all = open_pseudo_labels(Path("data/pseudo")).teacher == MEAN
    assert by_all.sum() > 50
    assert np.allclose(np.load("data/pseudo/soft.npy")[by_all], each.mean(0)[by_all], atol=1e-3)
