"""What a video shows: shots of an object in front of a backdrop, drawn with everything that makes a frame hard to read.

A shot has five attributes. Its look suggests the object's shape, texture and hue, its scenery the backdrop's pattern
and hue; each attribute is the suggested one with a known fidelity, otherwise any. Some shots are cutaways: any
attributes at all. Pose, motion, light, clutter, blur, lettering and JPEG quality carry nothing.
"""

import io

import numpy as np
from PIL import Image

from framefold.data.demo.world import World

VALUES = (6, 6, 12, 6, 12)  # of shape, texture, hue, pattern, backdrop hue
FIDELITY = (0.90, 0.90, 0.80, 0.80, 0.70)  # probability that the class's own value is shown for that reason
CUTAWAY = 0.08  # shots without a meaning
SECOND_SHOT = 0.5  # videos of two shots
NO_FRAMES = 0.02

SIZE = (0.45, 0.75)  # radius of the object, in half frames
DRIFT = 0.2  # of the object over a shot, in half frames
CLUTTER = 0.12  # standard deviation of the uneven light, a 5 x 5 field, in grey levels of 1
BLUR = (0.4, 1.4)  # pixels
LETTERED = 0.3  # shots with a line of lettering across
QUALITY = (60, 91)  # JPEG


class Scene:
    """Attribute tables of a world and the grids of a frame size."""

    def __init__(self, world: World, size: int):
        kind, variant = world.scenery, world.look % world.variants
        own = (kind + variant, kind + 3 * variant, 2 * kind + 5 * variant, kind, 2 * kind)
        self.own = np.stack([column % values for column, values in zip(own, VALUES, strict=True)], axis=1)  # (C, 5)
        axis = (np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1
        self.size, self.axis = size, axis
        self.light = hats(axis, 5)  # (size, 5), interpolates a coarse field

    def draw(self, rng: np.random.Generator, label: int) -> np.ndarray:
        """(shots, 5) attribute values; no shots: a video without frames."""
        shots = 0 if rng.random() < NO_FRAMES else 1 + int(rng.random() < SECOND_SHOT)
        any_value = rng.integers(VALUES, size=(shots, len(VALUES)))
        meant = (rng.random((shots, 1)) >= CUTAWAY) & (rng.random((shots, len(VALUES))) < FIDELITY)
        return np.where(meant, self.own[label], any_value)

    def frames(self, rng: np.random.Generator, shots: np.ndarray, n: int) -> np.ndarray:
        """(n, size, size, 3) uint8, the shots one after the other."""
        if len(shots) == 0:
            return np.zeros((0, self.size, self.size, 3), dtype=np.uint8)
        lengths = [n - n // 2, n // 2] if len(shots) == 2 else [n]
        return np.concatenate([self.shot(rng, shot, length) for shot, length in zip(shots, lengths, strict=True)])

    def shot(self, rng: np.random.Generator, attributes: np.ndarray, n: int) -> np.ndarray:
        shape, texture, hue, pattern, backdrop_hue = attributes
        u, v, radius = self.pose(rng, n)
        inside = np.clip(0.5 + SHAPES[shape](u, v) * radius * self.size / 2, 0, 1)
        figure = paint(rng, hue, TEXTURES[texture](u * 2.2, v * 2.2), contrast=0.55)
        angle, zoom, offset = rng.uniform(0, np.pi), rng.uniform(1.6, 2.4), rng.uniform(-3, 3, 2)
        x, y = rotate(self.axis[None, :], self.axis[:, None], angle)
        ground = paint(rng, backdrop_hue, TEXTURES[pattern](x * zoom + offset[0], y * zoom + offset[1]), contrast=0.3)
        scene = ground + inside[..., None] * (figure - ground)
        return self.camera(rng, scene.astype(np.float32))

    def pose(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Object coordinates (n, size, size) of every pixel, and its radius (n, 1, 1): it drifts, turns and grows."""
        time = np.linspace(-0.5, 0.5, n)[:, None, None]
        radius = rng.uniform(*SIZE) * (1 + rng.uniform(-0.3, 0.3) * time)
        x = self.axis[None, None, :] - (rng.uniform(-0.45, 0.45) + rng.normal(0, DRIFT) * time)
        y = self.axis[None, :, None] - (rng.uniform(-0.45, 0.45) + rng.normal(0, DRIFT) * time)
        u, v = rotate(x, y, rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.6) * time)
        return (u / radius).astype(np.float32), (v / radius).astype(np.float32), radius

    def camera(self, rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
        """Uneven light, blur, lettering, sensor noise."""
        from scipy.ndimage import gaussian_filter  # not at the top: it would slow the start of the stage

        n = len(scene)
        field = (rng.normal(0, CLUTTER, (1, 5, 5)) + rng.normal(0, CLUTTER / 3, (n, 5, 5))).astype(np.float32)
        scene += (self.light @ field @ self.light.T)[..., None]
        sigma = rng.uniform(*BLUR)
        scene = gaussian_filter(scene, (0, sigma, sigma, 0), mode="nearest", truncate=2.5)
        if rng.random() < LETTERED:
            row = int(rng.integers(self.size * 5 // 8, self.size - 6))
            scene[:, row : row + 4, 6:-6] += np.repeat(rng.random((self.size - 12) // 4 + 1) < 0.6, 4)[
                : self.size - 12, None
            ]
        scene += rng.standard_normal(scene.shape[:3], dtype=np.float32)[..., None] * np.float32(0.02)
        return (np.clip(scene, 0, 1) * 255).astype(np.uint8)


# Shapes: positive inside, about a distance, of radius 1. Textures: a tone in [0, 1].


def triangle(u, v):
    return 0.6 - np.maximum(np.maximum(-v, 0.866 * u + 0.5 * v), 0.5 * v - 0.866 * u)


def cross(u, v):
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(0.95 - a, 0.3 - b), np.minimum(0.3 - a, 0.95 - b))


def flower(u, v):
    return 0.7 + 0.3 * np.cos(5 * np.arctan2(v, u)) - np.hypot(u, v)


SHAPES = (
    lambda u, v: 0.9 - np.hypot(u, v),
    lambda u, v: 0.78 - np.maximum(np.abs(u), np.abs(v)),
    lambda u, v: 0.28 - np.abs(np.hypot(u, v) - 0.7),
    triangle,
    cross,
    flower,
)


def sharp(wave: np.ndarray) -> np.ndarray:
    return np.clip(0.5 + 2 * wave, 0, 1)


TEXTURES = (
    lambda u, v: np.full(np.broadcast(u, v).shape, 0.5, dtype=np.float32),
    lambda u, v: sharp(np.sin(5 * u) + 0 * v),
    lambda u, v: sharp(np.sin(4 * u) * np.sin(4 * v)),
    lambda u, v: sharp(np.cos(5 * u) + np.cos(5 * v) - 0.9),
    lambda u, v: sharp(np.sin(6 * np.hypot(u, v))),
    lambda u, v: sharp(np.sin(4 * u + 1.5 * np.sin(4 * v))),
)


def paint(rng: np.random.Generator, hue: int, tone: np.ndarray, contrast: float) -> np.ndarray:
    """(..., 3) a tone in a colour of its hue, of any saturation and lightness."""
    turn = (hue + rng.random()) / VALUES[2]
    wheel = np.cos(2 * np.pi * (turn - np.arange(3) / 3))
    colour = rng.uniform(0.3, 0.65) + rng.uniform(0.12, 0.35) * wheel
    sign = 1 if rng.random() < 0.5 else -1
    return colour.astype(np.float32) + np.float32(sign * contrast) * (tone[..., None] - np.float32(0.5))


def rotate(x: np.ndarray, y: np.ndarray, angle: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def hats(axis: np.ndarray, knots: int) -> np.ndarray:
    """(len(axis), knots) weights of linear interpolation."""
    return np.clip(1 - np.abs(axis[:, None] - np.linspace(-1, 1, knots)) * (knots - 1) / 2, 0, 1).astype(np.float32)


def reupload(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """The same frames cropped by a pixel or so and resized back: near the originals for a perceptual hash."""
    size = frames.shape[1] if len(frames) else 0
    left, top, right, bottom = rng.integers(0, 2, 4)
    box = (int(left), int(top), size - int(right), size - int(bottom))
    edited = [Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR, box) for frame in frames]
    return np.stack([np.asarray(image) for image in edited]) if edited else frames


def encode(frame: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
