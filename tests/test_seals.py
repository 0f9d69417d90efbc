"""What a later run may trust: .venv/bin/python -m pytest tests/test_seals.py"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from framefold.errors import UserError
from framefold.seals import about, fits_its_name, is_whole, named_by_digest, seal, seal_of, sealed, sealed_folder


class Killed(BaseException):
    pass


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    seal(path, {"ids": ["1", "2"]})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with sealed_folder(tmp_path / "folder") as aside:
        (aside / "a").write_bytes(b"first")
        (aside / "b").write_bytes(b"second")
    return tmp_path / "folder"


def test_what_was_written_is_whole(file: Path, folder: Path, caplog: pytest.LogCaptureFixture):
    assert is_whole(file)
    assert is_whole(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]  # the seal is not in it
    assert caplog.text == ""


def test_what_was_never_finished_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "file").touch()
    assert not is_whole(tmp_path / "file")
    assert not is_whole(tmp_path / "nothing")
    assert caplog.text == ""


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "emptied", "more"])
def test_damage_of_a_folder_is_told(folder: Path, damage: str, caplog: pytest.LogCaptureFixture):
    b = folder / "b"
    if damage == "gone":
        b.unlink()
    elif damage == "more":
        (folder / "c").touch()
    else:
        b.write_bytes({"flip": b"secone", "cut": b"sec", "emptied": b""}[damage])
    assert not is_whole(folder)
    assert "folder: damaged, so it is dropped and made again" in caplog.text


def test_files_that_have_changed_places_are_damage(folder: Path):
    (folder / "a").write_bytes(b"second")
    (folder / "b").write_bytes(b"first")
    assert not is_whole(folder)


@pytest.mark.parametrize(
    ("old", "new"), [('"1"', '"3"'), ('"digest": "', '"digest": "0'), ('"own"', '"owl"'), ("{", "["), ("}", "")]
)
def test_damage_of_the_seal_is_told(file: Path, old: str, new: str, caplog: pytest.LogCaptureFixture):
    """What it tells is as safe as what it seals."""
    text = seal_of(file).read_text()
    seal_of(file).write_text(text.replace(old, new))
    assert not is_whole(file)
    assert "file: damaged" in caplog.text


def test_a_seal_tells_what_it_was_told(file: Path):
    assert about(file) == {"ids": ["1", "2"]}


def test_killed_while_it_is_written_anew_is_not_finished(file: Path, caplog: pytest.LogCaptureFixture):
    """The old seal goes first: it would fit a file that has not been touched yet, though no longer wanted."""
    with pytest.raises(Killed), sealed(file):
        raise Killed
    assert not is_whole(file)
    assert caplog.text == ""


def test_the_content_stands_before_the_seal_does(folder: Path, monkeypatch: pytest.MonkeyPatch):
    steps, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append(Path(paths[1]).name), replace(*paths)))
    with sealed_folder(folder) as aside:
        (aside / "a").touch()
        assert not seal_of(folder).exists()
    assert steps[-2:] == ["folder", "folder.seal"]


# A digest in the name


def named(folder: Path) -> Path:
    with named_by_digest(folder, "block-7", ".npy") as file:
        np.save(file, np.arange(100_000))  # type: ignore[call-overload]
    (path,) = folder.glob("block-7-*.npy")
    return path


def test_the_name_is_the_digest_of_the_content(tmp_path: Path):
    path = named(tmp_path)
    assert path.name == f"block-7-{hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()}.npy"
    assert np.array_equal(np.load(path), np.arange(100_000))
    assert fits_its_name(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage", ["flip", "cut", "renamed"])
def test_damage_does_not_fit_the_name(tmp_path: Path, damage: str):
    path = named(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "flip" else content[:-1])
    assert not fits_its_name(path.rename(tmp_path / "block-7.npy") if damage == "renamed" else path)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"progress cannot be saved \(No space left on device\); free the disk"):
        named(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_writer_is_its_own(tmp_path: Path):
    with pytest.raises(RuntimeError, match="of mine"), named_by_digest(tmp_path, "block-7", ".npy"):
        raise RuntimeError("of mine")
    assert list(tmp_path.iterdir()) == []
