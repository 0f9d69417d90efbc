"""Layout zip_feats: `zip_feats/<split>.zip` holds `<id>.npy` members, float16 [n frames, dim], in place of frames."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from framefold.data import zip_directory
from framefold.data.ids import is_id
from framefold.data.zip_directory import Member, ZipError
from framefold.errors import UserError

MAX_FEATURE_BYTES = 16 << 20  # unpacked, of one video; 32 frames of 2,048 float16 have 128 KiB
HEADER_BYTES = 128  # what numpy writes in front of an array of any sane shape
ID = np.dtype("S20")
MEMBER = np.dtype(
    [
        ("flags", "<u2"),
        ("method", "<u2"),
        ("crc", "<u4"),
        ("packed", "<u8"),
        ("size", "<u8"),
        ("offset", "<u8"),
    ]
)
pack_member = struct.Struct("<HHIQQQ").pack  # with the id 52 bytes a video


def archive_path(root: Path | str, split: str) -> Path:
    return Path(root) / "zip_feats" / f"{split}.zip"


def iterate_archive(path: Path) -> Iterator[tuple[str, Member]]:
    """(id, member) of every `<id>.npy`, in the order of the archive. Raises UserError when it is no whole zip."""
    try:
        with open(path, "rb") as file:
            for member in zip_directory.read_members(file, None):
                name = zip_directory.decode_name(member).rsplit("/", 1)[-1]
                if name.endswith(".npy") and is_id(video_id := name.removesuffix(".npy")):
                    yield video_id, member
    except (OSError, ZipError) as error:
        raise UserError(f"{path}: cannot be read as a zip ({error}); copy it again") from None


def count_frames(file: BinaryIO, member: Member) -> int | None:
    """n from the header of a float16 [n, dim] member, the rest left packed; None when it is no such array."""
    try:
        shape, dtype = parse_header(read_start(file, member))
    except (ZipError, zlib.error, struct.error, ValueError):
        return None
    if len(shape) != 2 or dtype != np.float16 or member.size > MAX_FEATURE_BYTES:
        return None
    return shape[0]


def read_start(file: BinaryIO, member: Member) -> bytes:
    header = zip_directory.read_at(file, member.offset, zip_directory.LOCAL_SIZE)
    *_, n_name, n_extra = zip_directory.unpack_local(header)
    offset = member.offset + zip_directory.LOCAL_SIZE + n_name + n_extra
    packed = zip_directory.read_at(file, offset, min(member.compressed, 2 * HEADER_BYTES))
    if member.method == zip_directory.DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, HEADER_BYTES)
    return packed


def parse_header(start: bytes) -> tuple[tuple[int, ...], np.dtype]:
    stream = io.BytesIO(start)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("npy version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return shape, dtype


class FeatureArchive:
    """Random access by id to the features of one split; the index has 52 bytes a video."""

    def __init__(self, root: Path | str, split: str):
        self.path = archive_path(root, split)
        ids, members = bytearray(), bytearray()
        for video_id, one in iterate_archive(self.path):
            ids += video_id.encode("ascii").ljust(ID.itemsize, b"\0")
            members += pack_member(one.flags, one.method, one.crc, one.compressed, one.size, one.offset)
        self.ids, self.members = np.frombuffer(ids, ID), np.frombuffer(members, MEMBER)
        if np.any(self.ids[1:] < self.ids[:-1]):  # most archives are in order already
            order = np.argsort(self.ids, kind="stable")
            self.ids, self.members = self.ids[order], self.members[order]
        self.file = open(self.path, "rb")  # noqa: SIM115 - held for the life of the reader

    def read(self, video_id: str) -> np.ndarray:
        """float16 [n, dim]. Raises ZipError when the video is absent or its member broken."""
        key = video_id.encode("ascii", errors="replace")
        row = int(np.searchsorted(self.ids, key))
        if row == len(self.ids) or self.ids[row] != key:
            raise ZipError("not in the archive")
        flags, method, crc, packed, size, offset = self.members[row].tolist()
        if size > MAX_FEATURE_BYTES:
            raise ZipError(f"declares {size} bytes, more than {MAX_FEATURE_BYTES}")
        data = zip_directory.read_member(self.file, Member(b"", flags, method, crc, packed, size, offset))
        return parse_features(data)

    def close(self) -> None:
        self.file.close()


def parse_features(data: bytes) -> np.ndarray:
    try:
        features = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ZipError(f"not an array of numpy ({error})") from None
    if features.ndim != 2 or features.dtype != np.float16:
        raise ZipError(f"{features.dtype} {list(features.shape)} in place of float16 [n, dim]")
    return features
