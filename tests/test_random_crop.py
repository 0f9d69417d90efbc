"""Random crops of images: .venv/bin/pytest tests/test_random_crop.py

Every pixel of the image tells where it stands, red its column and green its row, so the crop's pixels tell its box.
"""

from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from framefold.data.images import Preprocess

SIDE, MIN_AREA, DRAWS = 16, 0.25, 400
FIT = Preprocess(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", "shortest")


class Boxes(NamedTuple):
    """In pixels of the image, to half a pixel or so."""

    left: np.ndarray
    top: np.ndarray
    width: np.ndarray
    height: np.ndarray
    mirrored: np.ndarray


def picture(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))


def draw(width: int, height: int, min_area: float) -> Boxes:
    """The steps between pixels tell the sides; edges are extrapolated, being half a step outside of centres."""
    image, rng = picture(width, height), np.random.default_rng(0)
    pixels = np.stack([FIT.random_crop(image, rng, min_area) for _ in range(DRAWS)]).astype(np.float64)
    x, y = pixels[:, SIDE // 2, 2:-2, 0], pixels[:, 2:-2, SIDE // 2, 1]  # not at the border, where filters are cut
    steps = [(line[:, -1] - line[:, 0]) / (line.shape[1] - 1) for line in (x, y)]
    mirrored = steps[0] < 0
    size = [np.abs(steps[0]) * SIDE, steps[1] * SIDE]  # one upside down would have a negative height
    middle = [line.mean(axis=1) + 0.5 for line in (x, y)]  # pixel k covers k to k + 1
    return Boxes(middle[0] - size[0] / 2, middle[1] - size[1] / 2, *size, mirrored)


@pytest.mark.parametrize("sides", [(200, 100), (100, 200), (120, 120)])
def test_crops_are_squares_of_at_least_the_area(sides: tuple[int, int]) -> None:
    """Of the largest square that fits: between half of the shorter side and all of it, evenly in area."""
    boxes = draw(*sides, MIN_AREA)
    assert np.abs(boxes.width - boxes.height).max() < 2.5
    share = (boxes.width / min(sides)) ** 2
    assert MIN_AREA - 0.03 < share.min() < MIN_AREA + 0.05
    assert 0.95 < share.max() < 1.03
    assert share.mean() == pytest.approx((MIN_AREA + 1) / 2, abs=0.04)


@pytest.mark.parametrize("sides", [(200, 100), (100, 200), (120, 120)])
def test_crops_lie_in_the_image_and_reach_every_edge(sides: tuple[int, int]) -> None:
    width, height = sides
    boxes = draw(width, height, MIN_AREA)
    for start, length, whole in ((boxes.left, boxes.width, width), (boxes.top, boxes.height, height)):
        assert start.min() > -2
        assert (start + length).max() < whole + 2
        assert start.min() < 3
        assert (start + length).max() > whole - 3
        place = (start / np.maximum(whole - length, 1e-9))[whole - length > 10]
        assert place.mean() == pytest.approx(0.5, abs=0.06)


def test_half_of_the_crops_are_mirrored() -> None:
    """Left to right, never upside down."""
    boxes = draw(200, 100, MIN_AREA)
    assert boxes.mirrored.mean() == pytest.approx(0.5, abs=0.1)  # four standard deviations
    assert (boxes.height > 0).all()


def test_the_whole_square_is_asked_for() -> None:
    """With an area of 1 a square image is shown whole."""
    boxes = draw(120, 120, 1.0)
    assert np.abs(boxes.width - 120).max() < 2.5
    assert np.abs(boxes.left).max() < 1.5
