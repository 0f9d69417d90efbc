"""Vision encoders: every form of weights file loads exactly or not at all; pixels are as in CLIP.

pytest tests/test_vision.py
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from framefold.errors import UserError
from framefold.models.vision import FrameEncoder, load_encoder, load_vision_encoder, save_encoder
from framefold.params.encoders import EncoderParams
from framefold.storage import sha256_of

VIT: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 1}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
TIMM_NAME = "test_efficientnet"


def params(**changes: Any) -> EncoderParams:
    root = Path(__file__).parents[1]
    small = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))["encoders"]["small"]
    small["adapt"]["epochs"] = 0
    return EncoderParams.model_validate(small | {"config": VIT} | changes)


def timm_params(**changes: Any) -> EncoderParams:
    return params(**({"library": "timm", "name": TIMM_NAME, "config": None} | changes))


def tiny_clip(quick_gelu: bool = False) -> nn.Module:
    torch.manual_seed(1)
    model = open_clip.CLIP(**VIT, text_cfg=TEXT, quick_gelu=quick_gelu).eval()
    for weight in model.visual.parameters():  # large enough for the choice of activation to show
        nn.init.normal_(weight, std=0.2)
    return model


def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def same(ours: nn.Module, theirs: nn.Module) -> bool:
    return torch.allclose(ours(images()), theirs(images()), atol=1e-5)


class Shipped(nn.Module):
    """As OpenAI ships a CLIP: half precision, both towers, and constants as buffers."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.visual, self.transformer, self.token_embedding = clip.visual, clip.transformer, clip.token_embedding
        self.ln_final, self.text_projection = clip.ln_final, clip.text_projection
        self.positional_embedding, self.logit_scale = clip.positional_embedding, clip.logit_scale
        for name, value in {"input_resolution": 32, "context_length": 8, "vocab_size": 50}.items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, image: Tensor) -> Tensor:
        return self.visual(image)


def write_torchscript(path: Path) -> nn.Module:
    """Writes the archive; returns the tower that it should give: the half-precision weights, with QuickGELU."""
    clip = tiny_clip(quick_gelu=True)
    for tensor in [*clip.parameters()]:
        tensor.data = tensor.data.half().float()
    expected = tiny_clip(quick_gelu=True).visual
    expected.load_state_dict(clip.visual.state_dict())
    with torch.no_grad():
        traced = torch.jit.trace(Shipped(clip), images(), check_trace=False)
        traced.half().save(str(path))
    return expected.eval()


def write_state(path: Path, state: dict[str, Tensor]) -> Path:
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["clip.pt", "clip.bin", "clip.safetensors"])
def test_a_clip_state_dict_gives_its_vision_tower(tmp_path: Path, name: str) -> None:
    clip = tiny_clip()
    path = write_state(tmp_path / name, clip.state_dict())
    assert same(load_vision_encoder(params(weights=str(path))), clip.visual)


def test_a_vision_tower_alone_loads_too(tmp_path: Path) -> None:
    clip = tiny_clip()
    path = write_state(tmp_path / "visual.safetensors", clip.visual.state_dict())
    assert same(load_vision_encoder(params(weights=str(path))), clip.visual)


def test_batches_under_way_keep_their_order_and_values() -> None:
    """Several at a time give what each gives alone."""
    encoder = load_vision_encoder(params())
    rng = np.random.default_rng(0)
    size = encoder.preprocess.image_size
    batches = [rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8) for n in (3, 1, 4, 2)]
    encode = FrameEncoder(encoder, torch.device("cpu"))
    together = list(encode(batches))
    for features, batch in zip(together, batches, strict=True):
        (alone,) = encode([batch])
        np.testing.assert_array_equal(features, alone)
    assert list(encode([])) == []


def test_a_torchscript_archive_as_openai_ships_it(tmp_path: Path) -> None:
    """Half-precision weights become float32, and the activation is the one they were trained with."""
    expected = write_torchscript(tmp_path / "ViT.pt")
    encoder = load_vision_encoder(params(weights=str(tmp_path / "ViT.pt")))
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    assert same(encoder, expected)
    plain_gelu = load_vision_encoder(params(weights=str(tmp_path / "ViT.pt"), kwargs={"quick_gelu": False}))
    assert not same(plain_gelu, expected)


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    clip = tiny_clip()
    path = write_state(tmp_path / "clip.pt", {name: tensor.half() for name, tensor in clip.state_dict().items()})
    encoder = load_vision_encoder(params(weights=str(path)))
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}


def test_a_timm_file_gives_the_features_before_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = timm.create_model(TIMM_NAME, num_classes=1000).eval()
    path = write_state(tmp_path / "timm.safetensors", model.state_dict())
    encoder = load_vision_encoder(timm_params(weights=str(path), image_size=32))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images()), pre_logits=True)
        torch.testing.assert_close(encoder(images()), expected)


@pytest.mark.parametrize("library", ["open_clip", "timm"])
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, library: str) -> None:
    """One tensor missing, one left over, one of another shape: all three are named."""
    if library == "timm":
        state, prefix, wanted = timm.create_model(TIMM_NAME, num_classes=7).state_dict(), "", timm_params
    else:
        state, prefix, wanted = tiny_clip().state_dict(), "visual.", params
    first, second = [name for name in state if name.startswith(prefix) and state[name].ndim][:2]
    del state[first]
    state |= {second: torch.zeros(1, 2, 3), f"{prefix}stranger.weight": torch.zeros(2)}
    path = write_state(tmp_path / "file.pt", state)
    with pytest.raises(UserError) as error:
        load_vision_encoder(wanted(weights=str(path)))
    for name in (first, second, "stranger.weight"):
        assert name.removeprefix("visual.") in str(error.value)


def test_a_wrong_checksum_stops(tmp_path: Path) -> None:
    path = write_state(tmp_path / "clip.pt", tiny_clip().state_dict())
    assert load_vision_encoder(params(weights=str(path), sha256=sha256_of(path)))
    with pytest.raises(UserError, match="sha256"):
        load_vision_encoder(params(weights=str(path), sha256="0" * 64))


def test_a_wrong_checksum_of_a_torchscript_archive_stops(tmp_path: Path) -> None:
    write_torchscript(tmp_path / "ViT.pt")
    with pytest.raises(UserError, match="sha256"):
        load_vision_encoder(params(weights=str(tmp_path / "ViT.pt"), sha256="0" * 64))


def test_code_in_a_weights_file_does_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            return (Path(tmp_path / "ran").touch, ())

    torch.save({"visual.proj": Attack()}, tmp_path / "clip.pt")
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_vision_encoder(params(weights=str(tmp_path / "clip.pt")))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "ViT-B-17", "config": None}, "no model 'ViT-B-17'"),
        ({"library": "timm", "name": "no_such_net", "config": None}, "no_such_net"),
        ({"kwargs": {"vision_cfg": {"depth": 3}}}, "depth"),
        ({"image_size": 64}, "64 pixels"),
        ({"weights": "nowhere.pt"}, "nowhere.pt"),
    ],
)
def test_what_cannot_be_built_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_vision_encoder(params(**changes))


def test_constructor_arguments_can_be_overridden() -> None:
    encoder = load_vision_encoder(params(kwargs={"vision_cfg": {"layers": 1}}))
    assert len(encoder.tower.transformer.resblocks) == 1
    padded = load_vision_encoder(timm_params(name="mobilenetv2_100", image_size=32, kwargs={"pad_type": "same"}))
    assert type(padded.tower.conv_stem).__name__ == "Conv2dSame"


def test_clip_is_normalised_as_clip() -> None:
    """ImageNet's numbers, timm's usual ones, never go into a CLIP by accident."""
    assert load_vision_encoder(params()).preprocess.mean == open_clip.OPENAI_DATASET_MEAN
    assert load_vision_encoder(timm_params(name="resnet10t")).preprocess.mean == IMAGENET_MEAN


def test_normalisation_can_be_overridden() -> None:
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    encoder = load_vision_encoder(params(normalization=half))
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert encoder.normalize(pixels).unique().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("size", [(100, 60), (33, 90), (32, 32)])
def test_pixels_are_those_of_open_clip(size: tuple[int, int]) -> None:
    """Resize, crop and normalisation give what open_clip's own transform gives."""
    encoder = load_vision_encoder(params())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    transform = open_clip.image_transform(32, is_train=False, resize_mode="shortest", interpolation="bicubic")
    ours = encoder.normalize(torch.from_numpy(np.array(encoder.preprocess.fit(image)))[None])[0]
    torch.testing.assert_close(ours, transform(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [params, timm_params])
def test_a_saved_encoder_needs_no_params(tmp_path: Path, make: Any) -> None:
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    encoder = load_vision_encoder(make(normalization=half, image_size=32))
    save_encoder(tmp_path, encoder, adapted_epochs=2)
    loaded = load_encoder(tmp_path)
    assert loaded.preprocess == encoder.preprocess
    assert loaded.dim == encoder.dim
    assert same(loaded, encoder)


def test_a_changed_file_of_a_saved_encoder_is_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path, load_vision_encoder(params()), adapted_epochs=0)
    write_state(tmp_path / "model.safetensors", tiny_clip().visual.state_dict())
    with pytest.raises(UserError, match="sha256"):
        load_encoder(tmp_path)


def test_features_beyond_float16_are_an_error_not_infinities() -> None:
    encoder = load_vision_encoder(params())
    encoder.tower.proj.data *= 1e6
    with pytest.raises(UserError, match="float16"):
        list(FrameEncoder(encoder, torch.device("cpu"))([np.zeros((1, 32, 32, 3), np.uint8)]))


def test_a_random_tower_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_vision_encoder(params())
    assert "random tower" in caplog.text
