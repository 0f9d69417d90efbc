"""Decoding on the device: the same frames as Pillow's up to a few levels, and the same rejects.

pytest tests/test_jpeg_decoder.py
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from framefold.data.decoding import Files
from framefold.data.frames import FrameError, as_jpeg
from framefold.data.images import TORCHVISION, Preprocess
from framefold.models.jpeg_decoder import JpegDecoder

SIDE = 48


def picture(width: int, height: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """A smooth picture, each colour with its own slope, so that a shifted or mirrored crop shows."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def preprocess(resize: str = "shortest", interpolation: str = "bicubic") -> Preprocess:
    return Preprocess(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), interpolation, resize, TORCHVISION)


def decode(files: list[bytes], fit: Preprocess) -> tuple[np.ndarray, list[tuple[str, str]]]:
    video = Files([(f"{number}.jpg", data) for number, data in enumerate(files)], [])
    (decoded,) = JpegDecoder(fit, torch.device("cpu")).decode([video])
    return decoded.pixels.numpy(), decoded.problems


@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("sides", [(64, 200), (201, 97), (48, 48), (30, 40)])
def test_pixels_are_those_of_pillow(resize: str, interpolation: str, sides: tuple[int, int]) -> None:
    fit, data = preprocess(resize, interpolation), picture(*sides)
    ours, problems = decode([data], fit)
    theirs = fit.pixels(data).astype(np.float32)
    assert problems == []
    assert ours.dtype == np.uint8
    assert ours[0].shape == theirs.shape
    assert np.abs(ours[0] - theirs).mean() < 2.0
    assert np.abs(ours[0, :, ::-1] - theirs).mean() > 10.0  # the check can fail: mirrored


def test_a_broken_image_costs_no_other() -> None:
    """nvJPEG and libjpeg fail a whole list; the others are then decoded one by one."""
    good = picture(64, 64)
    pixels, problems = decode([good, b"\xff\xd8 this is no picture", good], preprocess())
    assert len(pixels) == 2
    np.testing.assert_array_equal(pixels[0], pixels[1])
    assert problems == [("1.jpg", "not a whole image")]


def test_a_device_that_fails_is_no_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory: the frames are fine, and a shard without them must never be kept."""

    def fails(self: JpegDecoder, files: list[bytes]) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(JpegDecoder, "_decode", fails)
    with pytest.raises(torch.OutOfMemoryError):
        decode([picture(64, 64)], preprocess())


def test_an_image_that_the_device_cannot_read_is_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: JpegDecoder, files: list[bytes]) -> list[torch.Tensor]:
        raise RuntimeError("nvjpeg: not supported")

    expected, _ = decode([picture(64, 64)], preprocess())
    monkeypatch.setattr(JpegDecoder, "_decode", fails)
    pixels, problems = decode([picture(64, 64), b"no picture"], preprocess())
    assert np.abs(pixels[0].astype(np.float32) - expected[0]).mean() < 2.0
    assert problems == [("1.jpg", "not a whole image")]


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGB"), ("PNG", "RGBA"), ("JPEG", "CMYK"), ("JPEG", "L")])
def test_other_images_are_brought_into_a_form_that_gpus_read(kind: str, mode: str) -> None:
    data = picture(64, 64, kind, mode)
    pixels, problems = decode([as_jpeg(data)], preprocess())
    assert problems == []
    assert np.abs(pixels[0] - preprocess().pixels(data).astype(np.float32)).mean() < 3.0


def test_what_is_no_image_is_refused_by_its_header() -> None:
    with pytest.raises(FrameError, match="not a whole image"):
        as_jpeg(b"no image")


def test_an_image_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("framefold.data.frames.MAX_PIXELS", 63)
    with pytest.raises(FrameError, match="more than 63"):
        as_jpeg(picture(8, 8))
