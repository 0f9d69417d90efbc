"""From an image file to the pixels an encoder reads: resize, crop, and the numbers for normalising them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from framefold.data.frames import decode_jpeg
from framefold.errors import UserError
from framefold.storage import read_json

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "squash")
PILLOW, TORCHVISION = "pillow", "torchvision"  # what decodes JPEG: in workers, or where the encoder computes


@dataclass(frozen=True)
class Preprocess:
    """How an encoder wants its images; recorded with its weights."""

    image_size: int  # pixels, square
    mean: tuple[float, float, float]  # of RGB in 0..1
    std: tuple[float, float, float]
    interpolation: str  # bicubic | bilinear
    resize: str  # shortest: the shorter side to image_size, then the centre, as CLIP does; squash: both sides
    decoder: str = PILLOW  # libraries state none; params do

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS or self.resize not in RESIZE_MODES:
            raise UserError(
                f"encoder preprocessing: interpolation {self.interpolation}, resize {self.resize} is not supported; "
                f"known are {sorted(INTERPOLATIONS)} and {list(RESIZE_MODES)}"
            )

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Preprocess":
        return cls(**{**content, "mean": tuple(content["mean"]), "std": tuple(content["std"])})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def pixels(self, data: bytes) -> npt.NDArray[np.uint8]:
        """Decode one image file to uint8 [image_size, image_size, 3]. Raises FrameError for a broken image."""
        return np.asarray(self.fit(decode_jpeg(data, self.image_size)))

    def fit(self, image: Image.Image) -> Image.Image:
        sides, (left, top) = self.geometry(*image.size)
        resized = image.resize(sides, INTERPOLATIONS[self.interpolation])
        return resized.crop((left, top, left + self.image_size, top + self.image_size))

    def geometry(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """What an image of these sides is resized to (width, height), and the corner (left, top) of the crop."""
        size = self.image_size
        if self.resize == "squash":
            return (size, size), (0, 0)
        shorter = min(width, height)
        width, height = (size if side == shorter else int(size * side / shorter) for side in (width, height))
        return (width, height), (round((width - size) / 2), round((height - size) / 2))

    def random_crop(self, image: Image.Image, rng: np.random.Generator, min_area: float) -> npt.NDArray[np.uint8]:
        """A square of at least `min_area` of the largest one that fits, anywhere, mirrored half of the time."""
        side = min(image.size) * float(np.sqrt(rng.uniform(min_area, 1.0)))
        left, top = rng.uniform(0.0, image.width - side), rng.uniform(0.0, image.height - side)
        box, size = (left, top, left + side, top + side), (self.image_size, self.image_size)
        pixels = np.asarray(image.resize(size, INTERPOLATIONS[self.interpolation], box=box))
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def read_encoder_config(folder: Path | str) -> dict[str, Any]:
    """config.json of models/clip/<encoder>: recipe (null for given features), preprocess, dim, weights_sha256."""
    config: dict[str, Any] = read_json(Path(folder) / "config.json")
    return config
