"""Frames are read safely and in order. Run: .venv/bin/python -m pytest tests/test_frames.py"""

import contextlib
import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mini_root import MiniRoot, jpeg
from PIL import Image

from framefold.data import frames as frames_module
from framefold.data.frames import FrameError, VideoFrames, decode_jpeg, read_frames, uniform_indices
from framefold.data.manifest import SplitManifest, write_manifest
from framefold.errors import UserError


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    return MiniRoot(tmp_path, monkeypatch)


def read(mini: MiniRoot, members: dict[str, bytes], max_frames: int = 32) -> VideoFrames:
    mini.write_members("test", "1001", members)
    return read_back(mini, max_frames)


def read_back(mini: MiniRoot, max_frames: int = 32) -> VideoFrames:
    write_manifest(mini.root)
    entry = SplitManifest(mini.root, "test").find("1001")
    assert entry is not None
    return read_frames(mini.root, entry, max_frames)


@pytest.mark.parametrize(
    ("n", "at_most", "expected"),
    [(0, 4, []), (3, 4, [0, 1, 2]), (9, 3, [0, 4, 8]), (7, 1, [3]), (5, 2, [0, 4]), (64, 32, None)],
)
def test_frames_are_spaced_evenly_with_both_ends(n: int, at_most: int, expected: list[int] | None) -> None:
    """Fixed uniform sampling: never more than asked for, never one twice."""
    indices = uniform_indices(n, at_most).tolist()
    assert expected is None or indices == expected
    assert len(set(indices)) == len(indices) == min(n, at_most)


def test_frames_come_in_order_of_names_and_only_the_wanted_ones(mini: MiniRoot) -> None:
    """Order is that of the sorted names, whatever the order in the zip; others than images are ignored."""
    images = {f"{number:04d}.jpg": jpeg(number) for number in range(5)}
    members = dict(reversed(images.items())) | {"notes.txt": b"x", "__MACOSX/0000.jpg": b"x", ".0.jpg": b"x"}
    found = read(mini, members, max_frames=3)
    assert found.frames == [(name, images[name]) for name in ("0000.jpg", "0002.jpg", "0004.jpg")]
    assert found.problems == []


@pytest.mark.parametrize("name", ["../up.jpg", "/etc/a.jpg", "a/../../b.jpg", "C:\\a.jpg", "..\\a.jpg"])
def test_member_that_leaves_the_zip_is_refused_alone(mini: MiniRoot, name: str) -> None:
    """A hostile path is a problem of that member; the frame beside it is read."""
    found = read(mini, {"0000.jpg": jpeg(1), name: jpeg(2)})
    assert [member for member, _ in found.frames] == ["0000.jpg"]
    assert [reason for _, reason in found.problems] == ["path leaves the zip"]


def test_zip_bomb_is_refused_without_unpacking(mini: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that declare too much or unpack to hundreds of times their size are never inflated."""
    members = {"0000.jpg": jpeg(1), "1.jpg": b"\0" * (17 << 20), "2.jpg": b"\0" * (2 << 20)}
    monkeypatch.setattr("framefold.data.zip_directory.inflate", never_more_than(1 << 20))
    found = read(mini, members)
    assert [member for member, _ in found.frames] == ["0000.jpg"]
    assert len(found.problems) == 2


def never_more_than(limit: int) -> Callable[[bytes, int], bytes]:
    def inflate(data: bytes, size: int) -> bytes:
        assert size <= limit
        return zlib.decompressobj(-15).decompress(data)

    return inflate


def test_member_that_lies_about_its_size_is_cut_off(mini: MiniRoot) -> None:
    """The declared size is the most that is unpacked."""
    path = mini.write_members("test", "1001", {"0.jpg": b"\0" * (1 << 20)})
    lie = path.read_bytes().replace(struct.pack("<L", 1 << 20), struct.pack("<L", 1000))
    path.write_bytes(lie)
    assert read_back(mini) == VideoFrames([], [("0.jpg", "not of its declared size")])


def test_all_frames_of_a_video_together_are_limited(mini: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many members of a legal size are cut off at the video's limit."""
    monkeypatch.setattr(frames_module, "MAX_TOTAL_BYTES", 5000)
    found = read(mini, {f"{number}.jpg": bytes(2000) for number in range(4)})
    assert [member for member, _ in found.frames] == ["0.jpg", "1.jpg"]
    assert len(found.problems) == 2


def test_encrypted_member_and_unknown_compression_are_refused(mini: MiniRoot) -> None:
    """Each is a problem of its member alone."""
    path = mini.write_members("test", "1001", {"a.jpg": b"abc"})
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    path.write_bytes(content[: at + 8] + struct.pack("<H", 1) + content[at + 10 :])
    assert read_back(mini).problems == [("a.jpg", "encrypted")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jpg", b"abc")
    assert "compression method 14" in read_back(mini).problems[0][1]


def test_damaged_frame_is_a_problem_of_its_own(mini: MiniRoot) -> None:
    """Bytes that fail their CRC are named; the next frame is read."""
    path = mini.write_members("test", "1001", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)
    found = read_back(mini)
    assert [member for member, _ in found.frames] == ["b.jpg"]
    assert found.problems[0][0] == "a.jpg"


def test_zip_that_changed_since_the_manifest_stops_the_run(mini: MiniRoot) -> None:
    """Other frames than those indexed would be features of another video: the error names the command."""
    mini.write_members("test", "1001", {"a.jpg": jpeg(1)})
    write_manifest(mini.root)
    entry = SplitManifest(mini.root, "test").find("1001")
    assert entry is not None
    path = mini.write_members("test", "1001", {"a.jpg": jpeg(2)})
    with pytest.raises(UserError, match="framefold manifest"):
        read_frames(mini.root, entry, 4)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="framefold manifest"):
        read_frames(mini.root, entry, 4)
    path.unlink()
    assert "cannot be opened" in read_frames(mini.root, entry, 4).problems[0][1]


def test_jpeg_is_decoded_at_the_smallest_scale_that_suffices() -> None:
    """Draft mode: both sides stay at least the target, and the picture is RGB."""
    image = decode_jpeg(jpeg(3, size=256), 60)
    assert (image.size, image.mode) == ((64, 64), "RGB")
    assert decode_jpeg(jpeg(3, size=256), 200).size == (256, 256)


@pytest.mark.parametrize("size", [(8000, 5000), (1, 60000 * 400), (65000, 65000)])
def test_image_bomb_is_refused_by_its_header(size: tuple[int, int]) -> None:
    """A 40 MP picture is never decoded; neither is one that only claims its size."""
    buffer = io.BytesIO()
    if size == (8000, 5000):
        Image.new("L", size).save(buffer, "JPEG")
        data = buffer.getvalue()
    else:
        Image.new("L", (8, 8)).save(buffer, "PNG")
        header = b"IHDR" + struct.pack(">LL", *size) + b"\x08\0\0\0\0"
        data = buffer.getvalue()[:12] + header + struct.pack(">L", zlib.crc32(header)) + buffer.getvalue()[33:]
    with pytest.raises(FrameError):
        decode_jpeg(data, 64)


def test_no_damage_to_a_jpeg_is_more_than_a_frame_error() -> None:
    """Random damage, truncation and nonsense decode or raise FrameError, nothing else."""
    rng, whole = random.Random(0), jpeg(1)
    cases = [b"", b"\xff\xd8\xff", b"GIF89a", whole[:-300]]
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cases.append(bytes(data))
    for data in cases:
        with contextlib.suppress(FrameError):
            assert np.asarray(decode_jpeg(data, 32)).ndim == 3
    for data in cases[:4]:
        with pytest.raises(FrameError):
            decode_jpeg(data, 32)
