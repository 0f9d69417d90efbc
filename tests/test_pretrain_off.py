"""Pretraining of 0 epochs: students start from scratch. Run: .venv/bin/python -m pytest tests/test_pretrain_off.py"""

from pathlib import Path

import numpy as np
import pytest
import torch
from stores import CATEGORIES, DIM, VOCAB, make_project, make_teachers, small_params
from tiny_project import run_stage

from framefold.data.tokens import TokenStore
from framefold.data.topics import UNLABELED, token_vectors
from framefold.data.videos import open_videos
from framefold.evaluation.alive import pretraining
from framefold.models.registry import architecture, build_model, build_with_mlm_head, load_model, load_weights_into
from framefold.models.text import start_from_vectors
from framefold.params.base import load
from framefold.params.models import StudentParams
from framefold.params.pretrain import PretrainParams
from framefold.rounds import Round
from framefold.runtime import seed_everything
from framefold.storage import read_json
from framefold.training.pool import open_pool

ARCHS = ["single_stream", "dual_stream"]
SEED = 5


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    params = small_params()
    params["seed"], params["data"]["root"] = SEED, "raw"
    params["student"]["text"]["sizes"]["topics"] = True
    params["pretrain"]["epochs"] = {"single_stream": 0, "dual_stream": 0}
    make_project(tmp_path, params)
    make_teachers(tmp_path, params)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    run_stage("pseudo_label")
    return tmp_path


@pytest.mark.parametrize("arch", ARCHS)
def test_what_is_published_is_the_start_of_training(project, arch):
    """The weights that the seed draws, and words that know their topics."""
    run_stage("pretrain", "--arch", arch)
    published = load_model(Path("models/pretrain") / arch / "all")
    student, size = load(StudentParams), load(architecture(arch).Params, f"models.{arch}")
    seed_everything(SEED)
    expected, _ = build_with_mlm_head(arch, student.text, size, VOCAB, DIM, len(CATEGORIES))
    params = load(PretrainParams)
    rows = open_pool(student, Round(None).pseudo, None, params.labels, params.held_out, SEED).training.rows
    vectors = token_vectors(TokenStore(UNLABELED), rows, VOCAB, expected.word_embeddings.embedding_dim, SEED)
    start_from_vectors(expected.word_embeddings, vectors)
    state = published.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())


def test_a_student_can_start_from_it_and_no_check_takes_it_for_a_failure(project):
    run_stage("pretrain", "--arch", "single_stream")
    folder = Path("models/pretrain/single_stream/all")
    student, size = load(StudentParams), load(architecture("single_stream").Params, "models.single_stream")
    torch.manual_seed(99)
    model = build_model("single_stream", student.text, size, VOCAB, DIM, len(CATEGORIES))
    load_weights_into(model, folder)
    videos = open_videos("labeled", "small").dataset(np.arange(4), student.inputs).batch(np.arange(4))
    with torch.inference_mode():
        assert torch.equal(model.eval()(videos), load_model(folder)(videos))
    assert pretraining("single_stream", [read_json(folder / "metrics.json")]) == {}
    assert not (folder / "curves.csv").exists()


def test_the_strict_mode_has_a_start_for_every_teacher(project):
    """All the same: nothing of a teacher is in it."""
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("per_fold: false", "per_fold: true"), encoding="utf-8")
    run_stage("pseudo_label")
    run_stage("pretrain", "--arch", "single_stream")
    published = sorted(Path("models/pretrain/single_stream").iterdir())
    assert [folder.name for folder in published] == ["0", "1", "2"]
    assert len({(folder / "model.safetensors").read_bytes() for folder in published}) == 1
