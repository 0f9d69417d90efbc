"""Pretraining's objectives on a model, and pseudo-labelling: .venv/bin/python -m pytest tests/test_pretraining.py"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from stores import CATEGORIES, DIM, SIZES, SPECIAL, VOCAB, make_project, small_params
from torch.nn.functional import softplus

from framefold.data.pseudo_labels import MEAN, NOBODY, Assignment, open_pseudo_labels, write_labels
from framefold.data.tokens import SpecialTokens
from framefold.data.videos import open_videos
from framefold.evaluation.pseudo_quality import pool_quality
from framefold.inference.blocks import BlockFolder
from framefold.inference.processes import Processes
from framefold.inference.pseudo_labelling import Labeller, SoftLabels, label_pool
from framefold.models.registry import architecture, build_with_mlm_head
from framefold.objectives.itm import mismatched_pairs
from framefold.params.base import UserError, load, validate
from framefold.params.models import StudentParams
from framefold.params.pretrain import ObjectiveWeights, PretrainParams
from framefold.rounds import Round
from framefold.scratch import Scratch
from framefold.storage import write_json
from framefold.training.pool import open_pool
from framefold.training.pretraining import PretrainingModel
from framefold.training.sharing import Share
from framefold.training.views import Masking, MismatchedVideos

ARCHS = ["single_stream", "dual_stream"]
OFF = {"mlm": 0.0, "mfm": 0.0, "itm": 0.0, "itc": 0.0, "distillation": 0.0}
TOKENS = SpecialTokens(**SPECIAL, size=VOCAB)
ALONE = Share(24, 24)
PSEUDO = Round(None).pseudo


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build(arch: str, weights: dict[str, float] | None = None) -> PretrainingModel:
    params, student = load(PretrainParams), load(StudentParams)
    torch.manual_seed(0)
    size = load(architecture(arch).Params, f"models.{arch}")
    backbone, mlm_head = build_with_mlm_head(arch, student.text, size, VOCAB, DIM, len(CATEGORIES))
    chosen = params.weights[arch] if weights is None else ObjectiveWeights(**(OFF | weights))
    return PretrainingModel(backbone, mlm_head, chosen, params)


def batch(n: int = 24) -> dict[str, torch.Tensor]:
    """Masked videos of the pool with made-up soft labels."""
    videos = open_videos("unlabeled", "small")
    soft = np.random.default_rng(0).dirichlet(np.ones(len(CATEGORIES)), len(videos)).astype(np.float16)
    dataset = videos.dataset(np.arange(n), load(StudentParams).inputs, soft=soft)
    paired = MismatchedVideos(dataset, load(PretrainParams).mismatched)
    return Masking(load(PretrainParams).masking, TOKENS)(paired.batch(np.arange(n)), 0, 0)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("on", "off"), [({"mlm": 1.0}, "frames"), ({"mfm": 1.0}, "tokens")])
def test_what_no_objective_guesses_is_not_hidden(project, arch, on, off):
    """Without MFM all frames are shown to MLM, without MLM all tokens to MFM: other masks of them change nothing."""
    model, videos = build(arch, on).eval(), batch()
    other = dict(videos)
    if off == "frames":
        other["hidden_frames"] = videos["frame_mask"] & ~videos["hidden_frames"]
    else:
        other["masked_ids"] = torch.full_like(videos["masked_ids"], SPECIAL["mask"])
    assert model(videos, ALONE)[0] == model(other, ALONE)[0]
    hidden = dict(videos)
    hidden["frames" if off == "frames" else "input_ids"] = videos["frames" if off == "frames" else "input_ids"].flip(0)
    if arch == "single_stream":  # dual_stream's text never sees the frames
        assert model(videos, ALONE)[0] != model(hidden, ALONE)[0]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_objective_learns(project, arch):
    """On one batch over and over, each loss falls."""
    model, videos = build(arch), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    _, first = model.eval()(videos, ALONE)
    model.train()
    for _ in range(30):
        optimizer.zero_grad()
        model(videos, ALONE)[0].backward()
        optimizer.step()
    _, last = model.eval()(videos, ALONE)
    names = [name for name in first if name.startswith("loss_")]
    weights = load(PretrainParams).weights[arch].model_dump()
    assert {name.removeprefix("loss_") for name in names} == {name for name, weight in weights.items() if weight}
    floor = -(videos["soft"] * videos["soft"].clamp_min(1e-9).log()).sum(1).mean()  # entropy of the soft labels
    for name in names:
        least = floor if name == "loss_distillation" else 0
        assert last[name] - least < 0.8 * (first[name] - least), name


@pytest.mark.parametrize("arch", ARCHS)
def test_distillation_is_as_labels_says(project, arch):
    """Half of the loss on the best class, the other half with both sides at temperature 2."""
    model, videos = build(arch, {"distillation": 1.0}).eval(), batch()
    model.labels = load(PretrainParams).labels.model_copy(update={"hard": 0.5, "temperature": 2.0})
    logits, soft = model.backbone(videos).detach().double().numpy(), videos["soft"].double().numpy()
    root = np.sqrt(soft) / np.sqrt(soft).sum(1, keepdims=True)
    log_q, log_q2 = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (logits, logits / 2))
    expected = 0.5 * 4 * -(root * log_q2).sum(1).mean() + 0.5 * -log_q[np.arange(24), soft.argmax(1)].mean()
    assert float(model(videos, ALONE)[1]["loss_distillation"]) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_total_is_the_weighted_sum_of_the_losses_shown(project, arch):
    model = build(arch).eval()
    total, parts = model(batch(), ALONE)
    weights = load(PretrainParams).weights[arch].model_dump()
    expected = sum(weight * parts[f"loss_{name}"] for name, weight in weights.items() if weight)
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("on", ["mlm", "mfm", "itm", "distillation"])
def test_an_objective_of_weight_0_costs_no_pass_and_no_parameters(project, arch, on, monkeypatch):
    model = build(arch, {on: 1.0}).eval()
    lengths = []
    monkeypatch.setattr(model.backbone.text, "encode", counting(model.backbone.text.encode, lengths))
    _, parts = model(batch(), ALONE)
    assert [name for name in parts if name.startswith("loss_")] == [f"loss_{on}"]
    heads = {name.partition(".")[0] for name, _ in model.named_parameters()} - {"backbone"}
    assert heads == ({f"{on}_head"} if on != "distillation" else set())
    whole, share = 24, round(24 * load(PretrainParams).mismatched.share)
    expected = [whole, share] if on == "itm" and arch == "single_stream" else [whole]
    assert lengths == expected


def counting(function, sizes: list[int]):
    def wrapped(hidden, *args, **kwargs):
        sizes.append(len(hidden))
        return function(hidden, *args, **kwargs)

    return wrapped


def test_word_logits_are_computed_for_hidden_tokens_alone(project):
    model, videos = build("single_stream").eval(), batch()
    hidden = len(videos["token_places"])
    assert 0 < hidden < videos["text_mask"].sum() / 2
    assert masked_token_logits(model, videos).shape == (hidden, VOCAB)


def masked_token_logits(model: PretrainingModel, videos: dict[str, torch.Tensor]) -> torch.Tensor:
    return model._token_logits(model._hidden_view(videos)[0], videos)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_hidden_token_or_frame_cannot_be_read_from_the_view_that_predicts_it(project, arch):
    model, videos = build(arch, {"mlm": 1.0, "mfm": 1.0}).eval(), batch()
    changed = dict(videos)
    changed["input_ids"] = videos["input_ids"].flatten().index_fill(0, videos["token_places"], 7).view(24, -1)
    assert not torch.equal(changed["input_ids"], videos["input_ids"])
    changed["frames"] = torch.where(videos["hidden_frames"].unsqueeze(-1), 9.0, videos["frames"])
    assert torch.equal(masked_token_logits(model, videos), masked_token_logits(model, changed))
    states = [model._hidden_view(view)[1] for view in (videos, changed)]
    assert torch.equal(*states)
    changed["frames"] = videos["frames"] + 1.5 * videos["frames"].roll(1, -1)  # those that are shown count
    assert not torch.allclose(model._hidden_view(changed)[1], states[0])


@pytest.mark.parametrize("arch", ARCHS)
def test_mismatched_pairs_are_the_text_of_one_video_with_the_frames_of_another(project, arch):
    model, videos = build(arch).eval(), batch()
    rows, partners = map(torch.from_numpy, mismatched_pairs(load(PretrainParams).mismatched.share, 24))
    mixed = {name: videos[name][rows] for name in ("input_ids", "text_mask")}
    mixed |= {name: videos[name][partners] for name in ("frames", "frame_mask")}
    backbone, streams = model.backbone, None
    if arch == "dual_stream":
        streams = (*backbone.encode_text(videos), *backbone.encode_frames(videos))
    assert torch.allclose(model._swapped(videos, streams).pooled, backbone.encode(mixed).pooled, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_matching_counts_pairs_of_a_text_and_frames_that_are_there(project, arch):
    """By a loop over the head's logits: own text, own frames and, of a mismatched pair, the frames that are shown."""
    model, videos = build(arch, {"itm": 1.0}).eval(), batch()
    logits: list[torch.Tensor] = []
    model.itm_head.register_forward_hook(lambda head, inputs, output: logits.append(output.detach().double()))
    rows = videos["pair_rows"].tolist()
    videos["frame_mask"][:, 0] = videos["pair_frame_mask"][:, 0] = True
    videos["text_mask"][rows[0], 2:] = videos["frame_mask"][rows[1]] = videos["pair_frame_mask"][2] = False
    _, parts = model(videos, ALONE)
    has_text, own, shown = videos["text_mask"].sum(1) > 2, videos["frame_mask"].any(1), videos["pair_frame_mask"].any(1)
    right = [softplus(-logits[0][row]) for row in range(24) if has_text[row] and own[row]]
    wrong = [softplus(logits[1][pair]) for pair, row in enumerate(rows) if has_text[row] and own[row] and shown[pair]]
    assert (len(right), len(wrong)) == (22, len(rows) - 3)
    assert float(parts["loss_itm"]) == pytest.approx(float(sum(right) / len(right) + sum(wrong) / len(wrong)) / 2)


@pytest.mark.parametrize("arch", ARCHS)
def test_videos_without_frames_or_text_give_finite_losses(project, arch):
    model, videos = build(arch), batch()
    bare = dict(videos)
    bare["frames"], bare["frame_mask"] = videos["frames"][:, :0], videos["frame_mask"][:, :0]
    bare["pair_frames"], bare["pair_frame_mask"] = videos["pair_frames"][:, :0], videos["pair_frame_mask"][:, :0]
    bare["input_ids"] = torch.tensor([[SPECIAL["cls"], SPECIAL["sep"]]] * 24)
    bare["text_mask"] = torch.ones(24, 2, dtype=torch.bool)
    bare = Masking(load(PretrainParams).masking, TOKENS)(bare, 0, 0)
    total, parts = model(bare, ALONE)
    total.backward()
    assert all(torch.isfinite(value) for value in parts.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_contrast_is_refused_where_text_and_frames_are_never_apart():
    content = small_params()["pretrain"]
    content["weights"]["single_stream"]["itc"] = 0.3
    with pytest.raises(UserError, match="itc must be 0"):
        validate(PretrainParams, content, "pretrain", "params.yaml")


def label_all(folder: Path, teacher: np.ndarray, batch_size: int = 16, per_teacher: bool = True) -> SoftLabels:
    videos = open_videos("unlabeled", "small")
    models = {number: build("single_stream").backbone for number in (0, 1)}
    with torch.no_grad():
        for number, model in models.items():
            model.head.out.bias.copy_(torch.randn(len(CATEGORIES), generator=torch.Generator().manual_seed(number)))
    with Scratch("pseudo_label", {}) as scratch:
        soft = SoftLabels(BlockFolder(folder / "blocks", len(videos)), len(CATEGORIES), list(models), per_teacher)
        dataset = videos.dataset(np.arange(len(videos)), load(StudentParams).inputs)
        settings = {"batch_size": batch_size, "device": torch.device("cpu"), "precision": "fp32"}
        each = {number: [model.eval()] for number, model in models.items()}
        labeller = Labeller(each, dataset, 1.0, settings, None, alone=False)
        label_pool(labeller, teacher, soft, scratch, Processes("pseudo_label"))
    soft.publish(folder)
    return soft


def test_soft_labels_are_the_mean_or_those_of_the_one_teacher_allowed(project):
    teacher = np.arange(SIZES["unlabeled"], dtype=np.int32) % 4 - 2
    label_all(project / "soft", teacher)
    soft, each = (np.load(project / "soft" / name).astype(np.float32) for name in ("soft.npy", "per_teacher.npy"))
    assert np.array_equal(each.any(-1), np.stack([np.isin(teacher, [MEAN, t]) for t in (0, 1)]))
    assert np.allclose(soft[teacher == MEAN], each[:, teacher == MEAN].mean(0), atol=1e-3)
    assert np.allclose(soft[teacher == 1], each[1, teacher == 1])
    assert not soft[teacher == NOBODY].any()
    assert np.allclose(soft[teacher != NOBODY].sum(1), 1, atol=3e-3)
    assert np.abs(each[0] - each[1])[teacher == MEAN].max() > 0.01


def test_interrupted_labelling_ends_with_the_same_bytes(project, monkeypatch):
    """After a kill some blocks are missing; after a power cut one is damaged. Only these are labelled again."""
    monkeypatch.setattr("framefold.inference.blocks.BLOCK", 32)
    teacher = np.full(SIZES["unlabeled"], MEAN, np.int32)
    label_all(project / "whole", teacher)
    label_all(project / "half", teacher)
    blocks = sorted((project / "half/blocks").iterdir())
    blocks[1].unlink()
    blocks[3].write_bytes(blocks[3].read_bytes()[:-1] + b"x")
    kept = [block.stat().st_mtime_ns for block in (blocks[0], blocks[2], blocks[4])]
    label_all(project / "half", teacher)
    for name in ("soft.npy", "per_teacher.npy"):
        assert (project / "half" / name).read_bytes() == (project / "whole" / name).read_bytes()
    assert [block.stat().st_mtime_ns for block in (blocks[0], blocks[2], blocks[4])] == kept


def pseudo_labels(project: Path) -> None:
    teacher = np.full(SIZES["unlabeled"], MEAN, np.int32)
    folder = project / "data/pseudo"
    folder.mkdir()
    soft = label_all(folder, teacher, per_teacher=False)
    write_labels(
        folder, open_videos("unlabeled", "small").ids, Assignment(teacher, teacher == MEAN), soft.hard_labels()
    )
    write_json(folder / "teachers.json", {"folder": "t", "leaky": False, "n_folds": 3, "trained_folds": {"0": [1, 2]}})


def test_pool_keeps_videos_aside(project):
    pseudo_labels(project)
    pool = open_pool(load(StudentParams), PSEUDO, None, load(PretrainParams).labels, held_out=20, seed=0)
    assert len(pool.held_out) == 20
    assert not set(pool.held_out.rows) & set(pool.training.rows)
    assert len(pool.training) + 20 == open_pseudo_labels(PSEUDO).usable.sum()


def test_quality_of_the_pool_is_measured_only_where_the_truth_is_on_file(project):
    pseudo_labels(project)
    labels, truth = project / "data/pseudo/labels.parquet", project / "truth.csv"
    report, rows = pool_quality(labels, truth, CATEGORIES)
    assert "accuracy" not in report
    assert rows == []
    ids, label, *_ = pq.read_table(labels).to_pydict().values()
    pairs = [f"{video},{CATEGORIES[one]}" for video, one in zip(ids, label, strict=True)]
    foreign = [f"{line[:-4]}0999" for line in pairs[:40]]  # a category that the teachers do not know: never right
    truth.write_text("id,category_id\n" + "\n".join(foreign + pairs[60:]), encoding="utf-8")
    report, rows = pool_quality(labels, truth, CATEGORIES)
    known = SIZES["unlabeled"] - 20
    assert (report["n"], report["accuracy"]) == (known, pytest.approx(1 - 40 / known))
    assert sum(row["n"] for row in rows) == known
    sure = np.array(
        pq.read_table(labels)["confidence"].to_pylist()[:40] + pq.read_table(labels)["confidence"].to_pylist()[60:]
    )
    right, bins = np.repeat([0, 1], [40, known - 40]), np.floor(sure * 15)
    gaps = [abs((right[bins == one] - sure[bins == one]).sum()) for one in range(15)]
    assert report["ece"] == pytest.approx(sum(gaps) / known, abs=1e-6)
