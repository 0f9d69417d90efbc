"""Perceptual hashes of the first and the last frame of every video: 64 bits that survive recompression and small crops.

The hash is the sign of the 64 lowest frequencies of a frame's cosine transform against their median (pHash).
"""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from framefold.data.frames import FrameError, decode_jpeg, read_frames
from framefold.data.manifest import ManifestEntry

SIDE = 32  # pixels of the thumbnail
BITS = 64
MIN_CONTRAST = 4.0  # standard deviation in grey levels; flatter frames (black, white, fades) are no evidence
CHUNK = 128  # videos per task of a worker
POOL_FROM = 2000  # videos from which starting processes pays

Hashes = tuple[np.ndarray, np.ndarray]  # uint64 [n, 2] of first and last frame, bool [n, 2]: there is one


@lru_cache(maxsize=1)
def transform() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """DCT-II matrix [SIDE, SIDE], and rows and columns of the BITS lowest frequencies without the constant."""
    frequency, pixel = np.arange(SIDE)[:, None], np.arange(SIDE)[None, :]
    matrix = np.cos(np.pi / SIDE * (pixel + 0.5) * frequency)
    u, v = np.divmod(np.arange(SIDE * SIDE), SIDE)
    lowest = np.lexsort((u, u + v))[1 : BITS + 1]
    return matrix, u[lowest], v[lowest]


def perceptual_hashes(thumbnails: np.ndarray) -> Hashes:
    """uint64 [n] and bool [n] from grey thumbnails [n, SIDE, SIDE]; False where the picture is too flat for a hash."""
    matrix, rows, columns = transform()
    spectrum = matrix @ thumbnails.astype(np.float64) @ matrix.T
    low = spectrum[:, rows, columns]
    bits = low > np.median(low, axis=1, keepdims=True)
    hashes = np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)[:, 0]
    return hashes, thumbnails.std(axis=(1, 2)) >= MIN_CONTRAST


def hash_videos(root: Path, entries: list[ManifestEntry]) -> Hashes:
    """Hashes of some videos; a frame that is absent or broken has none."""
    thumbnails = np.zeros((len(entries), 2, SIDE, SIDE), np.uint8)
    for row, entry in enumerate(entries):
        frames = read_frames(root, entry, 2).frames if entry.frames else []
        for slot, (_, data) in enumerate(frames[:1] * 2 if len(frames) == 1 else frames):
            thumbnails[row, slot] = thumbnail(data)
    hashes, usable = perceptual_hashes(thumbnails.reshape(-1, SIDE, SIDE))
    return hashes.reshape(-1, 2), usable.reshape(-1, 2)


def thumbnail(data: bytes) -> np.ndarray:
    """uint8 [SIDE, SIDE]; black, hence without a hash, when the image is broken."""
    try:
        image = decode_jpeg(data, SIDE)
    except FrameError:
        return np.zeros((SIDE, SIDE), np.uint8)
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def hash_all(root: Path, entries: Iterable[ManifestEntry], n: int, workers: int) -> Iterator[Hashes]:
    """Hashes of `n` videos, chunk by chunk in their order, which does not depend on `workers`."""
    task = partial(hash_videos, root)
    if workers <= 1 or n < POOL_FROM:
        yield from map(task, chunked(entries))
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[Hashes]] = deque()
        for chunk in chunked(entries):
            waiting.append(pool.submit(task, chunk))
            if len(waiting) > 4 * workers:  # no more in flight, so that memory stays constant
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def chunked(entries: Iterable[ManifestEntry]) -> Iterator[list[ManifestEntry]]:
    chunk: list[ManifestEntry] = []
    for entry in entries:
        chunk.append(entry)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
