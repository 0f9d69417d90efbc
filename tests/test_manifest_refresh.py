"""A refresh of frames.manifest reads what is new, and nothing else: pytest tests/test_manifest_refresh.py"""

import io
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mini_root import MiniRoot, jpeg

from framefold.data import feature_archives, manifest
from framefold.data.manifest import NAME, write_manifest, zip_path

HOUR = 3600 * 10**9


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    return MiniRoot(tmp_path, monkeypatch).fill(labeled=6, others=3)


class Clock:
    """The file system's clock as the manifest sees it, put forward: files of the test's beginning are old."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.hours = 0
        monkeypatch.setattr(manifest, "clock_of", lambda file: time.time_ns() + self.hours * HOUR)

    def scan(self, root: Path, full: bool = False) -> bytes:
        """An hour later: refresh, and return the manifest."""
        self.hours += 1
        write_manifest(root, full)
        return (root / NAME).read_bytes()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the zips that were opened since the list was last cleared."""
    names: list[str] = []
    inspect, iterate = manifest.inspect_zip, feature_archives.iterate_archive

    def note(path: str) -> manifest.Found:
        names.append(Path(path).stem)
        return inspect(path)

    monkeypatch.setattr(manifest, "inspect_zip", note)
    monkeypatch.setattr(feature_archives, "iterate_archive", lambda path: (names.append(path.stem), iterate(path))[1])
    return names


def full_scan(root: Path) -> bytes:
    """What a scan that knows nothing writes."""
    aside = root.with_name("elsewhere")
    shutil.copytree(root, aside)
    (aside / NAME).unlink()
    write_manifest(aside)
    return (aside / NAME).read_bytes()


def test_a_refresh_opens_the_new_zips_alone(
    mini: MiniRoot,
    clock: Clock,
    opened: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock.scan(mini.root)
    opened.clear()
    new = mini.add("test")
    mini.write_zip("labeled", "777", [jpeg(9)])
    with caplog.at_level("INFO"):
        found = clock.scan(mini.root)
    assert sorted(opened) == sorted([new, "777"])
    assert found == full_scan(mini.root)
    assert "manifest labeled: 7 videos  opened 1  kept 6  unreadable 0" in caplog.text


def test_a_removed_zip_is_gone(mini: MiniRoot, clock: Clock, opened: list[str]) -> None:
    extra = mini.add("test")
    clock.scan(mini.root)
    opened.clear()
    zip_path(mini.root, "test", extra).unlink()
    found = clock.scan(mini.root)
    assert extra.encode() not in found
    assert found == full_scan(mini.root)


def test_a_zip_that_changed_at_its_size_is_seen(mini: MiniRoot, opened: list[str]) -> None:
    """By the real clock; the others, a second older than the first scan, are not opened. Its mtime is put back."""
    path = mini.write_members("test", "1001", {"a.jpg": b"aaaa"})
    before = path.stat()
    time.sleep(1.02 - time.time() % 1)
    write_manifest(mini.root)
    mini.write_members("test", "1001", {"a.jpg": b"aaab"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    opened.clear()
    write_manifest(mini.root)
    assert opened == ["1001"]
    assert (mini.root / NAME).read_bytes() == full_scan(mini.root)


def test_a_zip_that_changes_during_the_scan_is_read_by_the_next(
    mini: MiniRoot, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is as old as the beginning of its scan, not as its end."""
    path = mini.write_members("test", "1001", {"a.jpg": b"aaaa"})
    inspect = manifest.inspect_zip

    def change_after_reading(name: str) -> manifest.Found:
        found = inspect(name)
        if name == str(path):
            mini.write_members("test", "1001", {"a.jpg": b"aaab"})
            os.utime(path, ns=(0, manifest.clock_of(None)))  # type: ignore[arg-type]
            clock.hours += 1
        return found

    monkeypatch.setattr(manifest, "inspect_zip", change_after_reading)
    clock.scan(mini.root)
    monkeypatch.setattr(manifest, "inspect_zip", inspect)
    assert clock.scan(mini.root) == full_scan(mini.root)


@pytest.mark.parametrize("moved", ["zip_frames/test/001", "zip_frames/test", "zip_frames"])
def test_a_folder_that_was_moved_into_place_is_read(mini: MiniRoot, clock: Clock, moved: str) -> None:
    """Files in it keep all their times, and this one its size."""
    mini.write_members("test", "1001", {"a.jpg": b"aaaa"})
    other = mini.root.with_name("other")
    shutil.copytree(mini.root, other)
    with zipfile.ZipFile(zip_path(other, "test", "1001"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("a.jpg", (2022, 7, 1, 0, 0, 0)), b"aaab", zipfile.ZIP_DEFLATED)
    time.sleep(1.02 - time.time() % 1)
    write_manifest(mini.root)
    (mini.root / moved).rename(mini.root.with_name("old"))
    (other / moved).rename(mini.root / moved)
    write_manifest(mini.root)
    assert (mini.root / NAME).read_bytes() == full_scan(mini.root)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("manifest 1", "manifest 0"),
        lambda text: text[:-30],
        lambda text: text + "test\tnothing\n",
        lambda text: "\n".join(text.split("\n")[::-1]),
        lambda text: text.replace("\t", "\tz", 400),
        lambda text: "",
    ],
    ids=["version", "cut", "line", "order", "digits", "empty"],
)
def test_an_earlier_manifest_of_no_use_means_a_full_scan(mini: MiniRoot, clock: Clock, damage) -> None:
    whole = clock.scan(mini.root)
    (mini.root / NAME).write_text(damage(whole.decode()))
    os.utime(mini.root / NAME, ns=(0, (time.time_ns() + HOUR) // 10**9 * 10**9))
    assert clock.scan(mini.root) == whole == full_scan(mini.root)


@pytest.mark.parametrize("how", ["full", "copied", "clock put back", "unreadable"])
def test_what_is_not_certain_is_read(mini: MiniRoot, clock: Clock, opened: list[str], how: str) -> None:
    """All zips with --full, beside a manifest that was copied, or is of tomorrow; a broken zip each time."""
    if how == "unreadable":
        zip_path(mini.root, "test", bad := mini.add("test")).write_bytes(b"no zip")
    clock.scan(mini.root)
    if how == "copied":
        stamp = (mini.root / NAME).stat().st_mtime_ns
        os.utime(mini.root / NAME, ns=(stamp, stamp + 123_456_789))
    if how == "clock put back":
        clock.hours = -1
    opened.clear()
    clock.scan(mini.root, full=how == "full")
    assert opened == [bad] if how == "unreadable" else len(opened) == mini.count


def write_archive(root: Path, split: str, ids: range) -> None:
    (root / "zip_feats").mkdir(exist_ok=True, parents=True)
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((3, 4), np.float16))
    with zipfile.ZipFile(root / "zip_feats" / f"{split}.zip", "w") as archive:
        for number in ids:
            archive.writestr(zipfile.ZipInfo(f"{number}.npy"), buffer.getvalue())


def test_an_archive_of_features_is_read_only_when_it_changed(tmp_path: Path, clock: Clock, opened: list[str]) -> None:
    root = tmp_path / "raw"
    write_archive(root, "labeled", range(50))
    write_archive(root, "test", range(50, 60))
    clock.scan(root)
    opened.clear()
    write_archive(root, "test", range(50, 70))
    now = manifest.clock_of(None)  # type: ignore[arg-type]
    os.utime(root / "zip_feats/test.zip", ns=(now, now))
    found = clock.scan(root)
    assert opened == ["test"]
    assert found == full_scan(root)
    assert found.count(b"\n") == 71
