"""frames.manifest: .venv/bin/python -m pytest tests/test_manifest.py"""

import io
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mini_root import MiniRoot, jpeg

from framefold.data import zip_directory
from framefold.data.feature_archives import FeatureArchive
from framefold.data.manifest import NAME, UNREADABLE, SplitManifest, inspect_zip, iterate, write_manifest
from framefold.data.zip_directory import ZipError
from framefold.errors import UserError


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    return MiniRoot(tmp_path, monkeypatch)


def test_manifest_lists_every_video_once_sorted_with_its_frames(mini: MiniRoot) -> None:
    """One line per video, sorted by split then id, with the number of usable frames."""
    empty = mini.fill().add("test", frames=[])
    mini.finish()
    entries = list(iterate(mini.root))
    assert [(entry.split, entry.id) for entry in entries] == sorted((entry.split, entry.id) for entry in entries)
    assert len(entries) == mini.count
    assert {entry.id: entry.frames for entry in entries}[empty] == 0
    assert {entry.frames for entry in entries if entry.id != empty} == {2}


def test_manifest_is_the_same_whatever_the_order_of_files(mini: MiniRoot) -> None:
    """Written twice, byte for byte the same; stray files are left out."""
    mini.fill().finish()
    first = (mini.root / NAME).read_bytes()
    (mini.root / "zip_frames" / "test" / "notes.txt").write_text("x")
    (mini.root / "zip_frames" / "test" / "001").mkdir(exist_ok=True)
    (mini.root / "zip_frames" / "test" / "001" / "12345.zip").write_bytes(b"")  # not the folder of its last digits
    write_manifest(mini.root)
    assert (mini.root / NAME).read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 100])
def test_unreadable_zip_gets_a_line_and_stops_nothing(mini: MiniRoot, content: bytes) -> None:
    """A bad zip is listed as unreadable, the others as ever."""
    bad = mini.fill().add("test")
    mini.write_zip("test", bad, []).write_bytes(content)
    mini.finish()
    manifest = SplitManifest(mini.root, "test")
    entry = manifest.find(bad)
    assert entry is not None
    assert (entry.digest, entry.size, entry.frames) == (UNREADABLE, len(content), 0)
    assert (manifest.facts["frames"] == 2).sum() == len(manifest) - 1


def test_digest_sees_a_changed_frame_of_the_same_size(mini: MiniRoot) -> None:
    """The digest covers the CRCs of the members, not only sizes."""
    paths = [
        mini.write_members("test", video, {"a.jpg": data}) for video, data in (("1001", b"aaaa"), ("2001", b"aaab"))
    ]
    (size, digest, _), (other_size, other, _) = (inspect_zip(str(path)) for path in paths)
    assert size == other_size
    assert digest != other


def test_missing_or_foreign_manifest_says_how_to_write_one(tmp_path: Path) -> None:
    """The error names the command."""
    with pytest.raises(UserError, match="framefold manifest"):
        list(iterate(tmp_path))
    (tmp_path / NAME).write_text("something else\n")
    with pytest.raises(UserError, match="framefold manifest"):
        list(iterate(tmp_path))


def test_empty_root_is_an_error(tmp_path: Path) -> None:
    """A folder without videos is named, not indexed as nothing."""
    with pytest.raises(UserError, match="zip_frames"):
        write_manifest(tmp_path)
    (tmp_path / "zip_frames").mkdir()
    with pytest.raises(UserError, match="no videos"):
        write_manifest(tmp_path)


def test_directory_reader_agrees_with_zipfile(tmp_path: Path) -> None:
    """Members, sizes and data of zips as Python writes them, zip64 and data in front included."""
    rng = np.random.default_rng(0)
    contents = {f"{number:03d}.jpg": rng.bytes(number * 40) for number in range(120)} | {"名字.jpg": b"x"}
    path = tmp_path / "a.zip"
    with open(path, "wb") as file:
        file.write(b"#!/bin/sh\n" * 50)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                    member.write(data)
            archive.comment = b"a comment " * 700
    with open(path, "rb") as file:
        members = list(zip_directory.read_members(file, None))
        assert {zip_directory.decode_name(m): zip_directory.read_member(file, m) for m in members} == contents


def test_zip64_directory_of_many_members_is_read(tmp_path: Path) -> None:
    """An archive of more than 65,535 features, as a large unlabelled split has."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(66_000):
            archive.writestr(zipfile.ZipInfo(f"{number}.npy"), b"")
    with open(path, "rb") as file:
        names = [member.name for member in zip_directory.read_members(file, None)]
    assert len(names) == 66_000
    assert names[-1] == b"65999.npy"


def test_zip64_records_that_nothing_needs_are_skipped(tmp_path: Path) -> None:
    """Some writers always add them, with plain numbers in the record at the end as well."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.jpg", b"picture")
    data = path.read_bytes()
    end = data.rindex(zip_directory.END)
    *_, entries, size, start, _ = zip_directory.unpack_end(data, end)
    record = struct.pack("<4sQ2H2L4Q", zip_directory.END64, 44, 45, 45, 0, 0, entries, entries, size, start)
    locator = struct.pack("<4sLQL", zip_directory.LOCATOR64, 0, end, 1)
    path.write_bytes(data[:end] + record + locator + data[end:])
    with open(path, "rb") as file:
        (member,) = zip_directory.read_members(file, None)
        assert zip_directory.read_member(file, member) == b"picture"


def test_every_truncation_of_a_zip_is_a_zip_error(mini: MiniRoot) -> None:
    """Cut anywhere, a zip is an error of its own or reads whole, never a crash."""
    path = mini.write_zip("test", "1001", [jpeg(1), jpeg(2)])
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        with pytest.raises(ZipError):
            list(zip_directory.read_members(io.BytesIO(whole[:length]), None))


def test_feature_layout_is_indexed_and_read_back(tmp_path: Path) -> None:
    """zip_feats: n frames from the header alone, arrays equal, what is no float16 [n, dim] is unreadable."""
    features = {str(10**19 + n): np.random.default_rng(n).normal(size=(n, 8)).astype(np.float16) for n in (0, 1, 32)}
    (tmp_path / "zip_feats").mkdir()
    with zipfile.ZipFile(tmp_path / "zip_feats" / "test.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for video_id, array in [*features.items(), ("77", np.zeros(3, np.float32))]:
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"{video_id}.npy", buffer.getvalue())
    write_manifest(tmp_path)
    found = {entry.id: entry for entry in iterate(tmp_path)}
    assert {video_id: found[video_id].frames for video_id in features} == {k: len(v) for k, v in features.items()}
    assert found["77"].digest == UNREADABLE
    archive = FeatureArchive(tmp_path, "test")
    for video_id, array in features.items():
        np.testing.assert_array_equal(archive.read(video_id), array)
    with pytest.raises(ZipError):
        archive.read("78")
    archive.close()


def test_manifest_of_2000_zips_takes_no_seconds(tmp_path: Path) -> None:
    """At least 2,000 zips/s, so that 11,000 are indexed in a few seconds on the slowest machine."""
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as archive:
        for number in range(6):
            archive.writestr(f"{number}.jpg", b"x" * 2000)
    for number in range(2000):
        folder = tmp_path / "zip_frames" / "labeled" / f"{number % 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"1{number:06d}.zip").write_bytes(blob.getvalue())
    start = time.perf_counter()
    assert write_manifest(tmp_path) == 2000
    assert time.perf_counter() - start < 1
