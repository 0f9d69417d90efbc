"""Reading the frames of a video, safely: no zip or image may take more memory or time than a frame deserves."""

import io
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from framefold.data import manifest as manifests
from framefold.data import zip_directory
from framefold.data.manifest import ManifestEntry
from framefold.data.zip_directory import Member, ZipError
from framefold.errors import UserError

MAX_PIXELS = 20_000_000  # by the image's header, before decoding; 4K video has 8.3 million
MAX_TOTAL_BYTES = 256 << 20  # unpacked, of all frames of one video that are read
FORMATS = ("JPEG", "PNG")


class FrameError(Exception):
    """One frame cannot be used; the message says why in a few words."""


class VideoFrames(NamedTuple):
    """What a zip gave: frames in order, and what was refused. A problem with member "" concerns the whole zip."""

    frames: list[tuple[str, bytes]]  # (member name, image file)
    problems: list[tuple[str, str]]  # (member name, reason)


def uniform_indices(n: int, at_most: int) -> np.ndarray:
    """int64 [min(n, at_most)]: evenly spaced over 0..n-1, both ends included; the middle one when one is wanted."""
    if n <= at_most:
        return np.arange(n)
    if at_most == 1:
        return np.array([(n - 1) // 2])
    return np.round(np.linspace(0, n - 1, at_most)).astype(np.int64)


def read_frames(root: Path | str, entry: ManifestEntry, max_frames: int) -> VideoFrames:
    """The image files of one video: at most `max_frames`, uniformly spaced over its usable members in name order.

    Only those are unpacked. A missing or unreadable zip and refused members are `problems`, not exceptions.
    Raises UserError when the zip is not the one that the manifest describes.
    """
    path = manifests.zip_path(root, entry.split, entry.id)
    try:
        with open(path, "rb", buffering=0) as file:
            members = current_members(file, path, root, entry)
            return unpack_frames(file, members, max_frames)
    except OSError as error:
        return VideoFrames([], [("", f"zip cannot be opened ({error.strerror})")])
    except ZipError as error:
        return VideoFrames([], [("", f"zip cannot be read: {error}")])


def current_members(file: BinaryIO, path: Path, root: Path | str, entry: ManifestEntry) -> list[Member]:
    size = file.seek(0, io.SEEK_END)
    try:
        members = list(zip_directory.read_members(file, manifests.MAX_MEMBERS))
    except ZipError:
        if size == entry.size and entry.digest == manifests.UNREADABLE:
            raise
        members = None
    if members is None or size != entry.size or manifests.format_digest(manifests.digest_of(members)) != entry.digest:
        raise UserError(f"{path}: changed since the manifest was written; refresh it with `framefold manifest {root}`")
    return members


def unpack_frames(file: BinaryIO, members: list[Member], max_frames: int) -> VideoFrames:
    named = sorted((zip_directory.decode_name(member), member) for member in members if manifests.is_frame(member))
    problems = [(name, reason) for name, member in named if (reason := manifests.refusal(member))]
    usable = [(name, member) for name, member in named if not manifests.refusal(member)]
    frames, total = [], 0
    for index in uniform_indices(len(usable), max_frames):
        name, member = usable[index]
        total += member.size
        try:
            if total > MAX_TOTAL_BYTES:
                raise ZipError(f"the video's frames unpack to more than {MAX_TOTAL_BYTES} bytes")
            frames.append((name, zip_directory.read_member(file, member)))
        except ZipError as error:
            problems.append((name, str(error)))
    return VideoFrames(frames, problems)


def as_jpeg(data: bytes) -> bytes:
    """An image file as a JPEG that GPUs decode: most are one already, by a look at the header.

    Raises FrameError for anything that is not an image of at most MAX_PIXELS pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise FrameError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            if image.format == "JPEG" and image.mode in ("L", "RGB"):
                return data
            buffer = io.BytesIO()  # PNG, or CMYK
            image.convert("RGB").save(buffer, "JPEG", quality=98, subsampling=0)
            return buffer.getvalue()
    except FrameError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
        raise FrameError(f"not a whole image ({' '.join(str(error).split())[:120]})") from None


def decode_jpeg(data: bytes, target_size: int) -> Image.Image:
    """Decode an image file to RGB at the smallest JPEG scale (1 to 1/8) with both sides >= `target_size` pixels.

    Raises FrameError for anything that is not a whole image of at most MAX_PIXELS pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise FrameError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            image.draft("RGB", (target_size, target_size))
            return image.convert("RGB")
    except FrameError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on hostile bytes
        raise FrameError(f"not a whole image ({' '.join(str(error).split())[:120]})") from None
