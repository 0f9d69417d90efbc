"""single_stream and dual_stream: what logits may depend on, saving and loading: pytest tests/test_models.py"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from head_params import arch_params
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.models.heads import ContrastHead, ItmHead, MfmHead, masked_mean
from framefold.models.initialization import from_fan_in
from framefold.models.registry import architecture, build_model, load_model, load_weights_into, save_model
from framefold.models.text import load_text_encoder
from framefold.params.models import TextModelParams, TextSizes
from framefold.storage import sha256_of

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("single_stream", "dual_stream")
VOCAB, DIM, CLASSES = 50, 12, 7
Batch = dict[str, Tensor]


def build(arch: str, dropout: float = 0.1, hidden: int = 32, layers: int = 2) -> Any:
    sizes = TextSizes(
        layers=layers, hidden=hidden, heads=4, intermediate=64, max_positions=24, dropout=dropout, topics=False
    )
    torch.manual_seed(0)
    text = TextModelParams(folder=None, sha256=None, sizes=sizes)
    model = build_model(arch, text, arch_params(arch, hidden=16, dropout=dropout), VOCAB, DIM, CLASSES)
    for parameter in model.parameters():  # large weights, so that every input shows in the logits
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def make_batch(text_lengths: list[int], frame_counts: list[int]) -> Batch:
    generator = torch.Generator().manual_seed(1)
    rows, longest, most = len(text_lengths), max(text_lengths), max(frame_counts)
    return {
        "input_ids": torch.randint(5, VOCAB, (rows, longest), generator=generator),
        "text_mask": torch.arange(longest) < torch.tensor(text_lengths)[:, None],
        "frames": torch.randn(rows, most, DIM, generator=generator),
        "frame_mask": torch.arange(most) < torch.tensor(frame_counts)[:, None],
    }


def mixed_batch() -> Batch:
    """Full, short, without text ([CLS] [SEP] alone) and without frames."""
    return make_batch([11, 6, 2, 9], [5, 3, 4, 0])


def padded(batch: Batch, tokens: int, frames: int, filler: float) -> Batch:
    """The same videos with more padding, which holds garbage."""
    rows = len(batch["frames"])
    return {
        "input_ids": torch.cat([batch["input_ids"], torch.full((rows, tokens), 3)], dim=1),
        "text_mask": torch.cat([batch["text_mask"], torch.zeros(rows, tokens, dtype=torch.bool)], dim=1),
        "frames": torch.cat([batch["frames"], torch.full((rows, frames, DIM), filler)], dim=1),
        "frame_mask": torch.cat([batch["frame_mask"], torch.zeros(rows, frames, dtype=torch.bool)], dim=1),
    }


def alone(batch: Batch, row: int) -> Batch:
    """One video of the batch, cut to its own length."""
    tokens, frames = int(batch["text_mask"][row].sum()), int(batch["frame_mask"][row].sum())
    cut = {"input_ids": tokens, "text_mask": tokens, "frames": frames, "frame_mask": frames}
    return {name: batch[name][row : row + 1, :length] for name, length in cut.items()}


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module", params=ARCHS)
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@torch.no_grad()
@pytest.mark.parametrize("filler", [0.0, 1e4, float("inf"), float("nan")])
def test_padding_does_not_change_logits(model: Any, filler: float) -> None:
    """Whatever stands in padded tokens and frames, infinities included."""
    batch = mixed_batch()
    assert_same(model(padded(batch, 6, 4, filler)), model(batch))


@torch.no_grad()
def test_padding_taken_for_content_is_noticed(model: Any) -> None:
    """The planted defect: with a mask that covers the padding the same comparison fails."""
    batch = mixed_batch()
    wrong = padded(batch, 6, 4, 1.0)
    for mask in ("text_mask", "frame_mask"):
        defect = wrong | {mask: torch.ones_like(wrong[mask])}
        with pytest.raises(AssertionError):
            assert_same(model(defect), model(batch))


@torch.no_grad()
def test_neighbours_and_batch_size_do_not_change_logits(model: Any) -> None:
    """A video alone, without any padding (no frame column at all if it has none), scores as in its batch."""
    batch = mixed_batch()
    assert_same(torch.cat([model(alone(batch, row)) for row in range(4)]), model(batch))


@torch.no_grad()
@pytest.mark.parametrize("modality", ["input_ids", "frames"])
def test_both_modalities_reach_the_logits(model: Any, modality: str) -> None:
    """Changing one valid token or frame changes the logits of its video and of no other."""
    batch = mixed_batch()
    changed = batch[modality].clone()
    changed[1, 2] = changed[1, 2] + 1 if modality == "input_ids" else changed[1, 2].flip(0)
    difference = (model(batch | {modality: changed}) - model(batch)).abs().amax(1)
    assert difference[1] > 1e-3
    assert difference[[0, 2, 3]].max() == 0


@torch.no_grad()
def test_encoder_scale_does_not_matter(model: Any) -> None:
    """Features of another scale or offset (another vision encoder's habit) give the same logits."""
    batch = mixed_batch()
    assert_same(model(batch | {"frames": batch["frames"] * 50 + 7}), model(batch))


@torch.no_grad()
def test_replaced_inputs_are_used(model: Any) -> None:
    """Masked ids and mismatched frames given to `encode` act like a batch that holds them."""
    batch = mixed_batch()
    ids, order = batch["input_ids"].roll(1, 1), torch.tensor([2, 0, 3, 1])
    frames, frame_mask = batch["frames"][order], batch["frame_mask"][order]
    expected = model.encode(batch | {"input_ids": ids, "frames": frames, "frame_mask": frame_mask})
    found = model.encode(batch, input_ids=ids, frames=frames, frame_mask=frame_mask)
    assert torch.equal(found.pooled, expected.pooled)
    assert found.text.shape == (4, 11, 32)
    assert found.frames.shape == (4, 5, 32)
    assert found.pooled.shape == (4, model.pooled_size)


@torch.no_grad()
def test_mismatched_pairs_need_only_the_fusion() -> None:
    """dual_stream: states of both encoders, re-paired and fused, equal an encoding of the re-paired batch."""
    model, batch, order = build("dual_stream"), mixed_batch(), torch.tensor([2, 0, 3, 1])
    states, mask = model.encode_frames(batch)
    found = model.fuse(*model.encode_text(batch), states[order], mask[order])
    expected = model.encode(batch, frames=batch["frames"][order], frame_mask=batch["frame_mask"][order])
    assert_same(found.pooled, expected.pooled)


@torch.no_grad()
def test_the_only_frame_is_not_averaged_with_the_query() -> None:
    """dual_stream: the part of `pooled` that means frames is that frame's state, and the query stands after it."""
    model, batch = build("dual_stream"), make_batch([6], [1])
    encoded = model.encode(batch)
    _, frames, query = encoded.pooled.chunk(3, dim=-1)
    assert_same(frames, encoded.frames[:, 0])
    assert not torch.allclose(query, frames, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("width", [24, 128, 1280])
def test_new_layers_keep_unit_variance(width: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(width, 512).apply(from_fan_in)
    assert float(layer(torch.randn(256, width)).std()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(("width", "std"), [(768, 0.02), (192, 0.04)])
def test_text_models_from_scratch_scale_with_their_width(width: int, std: float) -> None:
    """BERT's own initial weights at BERT's width."""
    torch.manual_seed(0)
    sizes = TextSizes(layers=1, hidden=width, heads=4, intermediate=64, max_positions=8, dropout=0.1, topics=False)
    encoder, _ = load_text_encoder(TextModelParams(folder=None, sha256=None, sizes=sizes), VOCAB)
    for layer in (encoder.encoder.layer[0].attention.self.query, encoder.embeddings.word_embeddings):
        assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.05)


@torch.no_grad()
def test_contrast_vectors_hold_one_modality_each() -> None:
    """dual_stream: the text vector knows nothing of the frames and the other way round; no frames: zeros."""
    model, batch = build("dual_stream"), mixed_batch()
    text, frames = model.unimodal(*model.encode_text(batch), *model.encode_frames(batch))
    other = batch | {"input_ids": batch["input_ids"].flip(0)}
    other_text, same_frames = model.unimodal(*model.encode_text(other), *model.encode_frames(other))
    assert torch.equal(frames, same_frames)
    assert not torch.equal(text, other_text)
    assert not frames[3].any()


def test_every_parameter_learns(model: Any) -> None:
    """No dead weights: the classification loss reaches every parameter."""
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(mixed_batch()), torch.tensor([0, 1, 2, 3])).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_learning_rate_roles(model: Any) -> None:
    """Exactly the text encoder has the text role."""
    text = {id(parameter) for parameter in model.text.parameters()}
    wrong = [name for name, p in model.named_parameters() if (model.role_of(name) == "text") != (id(p) in text)]
    assert wrong == []
    assert model.word_embeddings.weight.shape == (VOCAB, 32)


def test_logits_are_float32_in_mixed_precision(model: Any) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(mixed_batch())
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.mark.parametrize("arch", ARCHS)
def test_model_of_any_size_builds_on_the_meta_device(arch: str) -> None:
    """Full-scale sizes can be checked without their memory."""
    with torch.device("meta"):
        sizes = TextSizes(
            layers=12, hidden=768, heads=12, intermediate=3072, max_positions=512, dropout=0.1, topics=False
        )
        text = TextModelParams(folder=None, sha256=None, sizes=sizes)
        built = build_model(arch, text, arch_params(arch, hidden=768, dropout=0.1), 21128, 512, 200)
    assert sum(parameter.numel() for parameter in built.parameters()) > 100_000_000


@torch.no_grad()
def test_saved_model_gives_the_same_logits(model: Any, tmp_path: Path) -> None:
    """Rebuilt from its own folder alone; saved twice, the bytes are the same."""
    save_model(tmp_path / "a", model)
    save_model(tmp_path / "b", load_model(tmp_path / "a"))
    assert torch.equal(load_model(tmp_path / "a")(mixed_batch()), model(mixed_batch()))
    assert [sha256_of(tmp_path / "b" / name) for name in ("model.safetensors", "config.json")] == [
        sha256_of(tmp_path / "a" / name) for name in ("model.safetensors", "config.json")
    ]


def test_loading_draws_no_random_numbers(model: Any, tmp_path: Path) -> None:
    """So a warm start leaves the seeds of a training run alone."""
    save_model(tmp_path, model)
    state = torch.get_rng_state()
    load_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_warm_start_takes_all_weights(tmp_path: Path) -> None:
    source, target = build("dual_stream"), build("dual_stream", dropout=0.3)
    target.head.out.bias.data += 1
    save_model(tmp_path, source)
    load_weights_into(target, tmp_path)
    assert torch.equal(target(mixed_batch()), source(mixed_batch()))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"arch": "single_stream"}, "arch is 'dual_stream' there and 'single_stream' here"),
        ({"arch": "dual_stream", "layers": 3}, "text.num_hidden_layers is 2 there and 3 here"),
        ({"arch": "dual_stream", "hidden": 64}, "text.hidden_size is 32 there and 64 here"),
    ],
)
def test_warm_start_from_another_model_names_both_values(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    save_model(tmp_path, build("dual_stream"))
    with pytest.raises(UserError, match=message):
        load_weights_into(build(**other), tmp_path)


def test_weights_that_do_not_fit_their_config_are_named(tmp_path: Path) -> None:
    save_model(tmp_path, build("single_stream"))
    config = json.loads((tmp_path / "config.json").read_text())
    config["n_classes"] = CLASSES + 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"head\.out\.bias: \(7,\) in the file, \(8,\) in the model"):
        load_model(tmp_path)


def test_unknown_architecture_is_an_error() -> None:
    with pytest.raises(UserError, match="'triple_stream' is no architecture"):
        architecture("triple_stream")


def test_masked_mean_ignores_what_is_masked() -> None:
    states = torch.tensor([[[1.0], [3.0], [float("nan")]], [[5.0], [5.0], [5.0]]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(states, mask).tolist() == [[2.0], [0.0]]


def test_head_shapes() -> None:
    """Masked frames only; one matching logit a pair; unit vectors and a positive scale for contrast."""
    positions = torch.tensor([0, 2, 5])
    assert MfmHead(8, DIM)(torch.randn(2, 3, 8), positions).shape == (3, DIM)
    assert ItmHead(8)(torch.randn(5, 8)).shape == (5,)
    text, frames, scale = ContrastHead(8, 6, 4, 0.07)(torch.randn(5, 8), torch.randn(5, 6))
    assert_same(torch.cat([text, frames]).norm(dim=-1), torch.ones(10))
    assert scale.item() == pytest.approx(1 / 0.07)


def test_models_import_little() -> None:
    """A training stage must not pay for libraries that it does not use."""
    code = (
        "import sys, framefold.models.registry, framefold.models.single_stream, framefold.models.dual_stream\n"
        "unused = {'transformers', 'open_clip', 'timm', 'torchvision', 'tokenizers', 'sklearn'}\n"
        "print(sorted(unused & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
