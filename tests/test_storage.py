"""Outputs on disk: .venv/bin/python -m pytest tests/test_storage.py"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from framefold import storage
from framefold.errors import UserError
from framefold.storage import drop_unlisted, link_or_copy, write_aside, write_folder_aside

Aside = Callable[[Path], AbstractContextManager[Path]]


def test_what_params_no_longer_name_is_dropped(tmp_path: Path):
    for name in ("single_stream", "dual_stream"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.json").touch()
    drop_unlisted(tmp_path, ["single_stream", "single_stream.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["single_stream", "single_stream.json"]


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path):
    drop_unlisted(tmp_path / "models", ["single_stream"])
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_gets_another_name_whether_or_not_there_are_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
):
    def refused(*paths: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    (tmp_path / "a").write_bytes(b"content")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"content"
    assert (tmp_path / "a").samefile(tmp_path / "b") is links


# What killed processes leave aside

KILLED = """
import os, signal, sys
from framefold.storage import write_aside, write_folder_aside
with write_aside("report.json") as file, write_folder_aside("model") as folder:
    file.touch(), (folder / "weights").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_next_write_removes_what_a_killed_one_left_aside(tmp_path: Path):
    subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, check=False)
    assert len(list(tmp_path.glob(".*.aside"))) == 2
    with write_aside(tmp_path / "report.json") as file, write_folder_aside(tmp_path / "model"):
        file.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "report.json"]


@pytest.mark.parametrize(
    ("name", "hours", "kept"),
    [
        (".model.{host}-{parent}.aside", 48, True),  # its process is at work
        (".model.elsewhere-1.aside", 1, True),  # nobody can tell, and it is young
        (".model.elsewhere-1.aside", 48, False),
        (".model.{host}-{own}.old.aside", 0, False),  # of an earlier process with this one's number
        (".model.json.elsewhere-1.aside", 48, True),  # of another target
    ],
)
def test_only_what_nobody_is_at_work_on_is_removed(tmp_path: Path, name: str, hours: int, kept: bool):
    aside = tmp_path / name.format(host=storage._host(), parent=os.getppid(), own=os.getpid())
    aside.mkdir()
    then = time.time() - 3600 * hours
    os.utime(aside, (then, then))
    with write_folder_aside(tmp_path / "model"):
        pass
    assert aside.exists() is kept


def test_a_folder_that_is_replaced_is_never_seen_by_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Deleting takes long; it must not happen under the folder's own name."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    deleted: list[Path] = []
    monkeypatch.setattr(storage.shutil, "rmtree", lambda path, **_: deleted.append(path))
    with write_folder_aside(tmp_path / "model") as aside:
        (aside / "new").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["new"]
    assert tmp_path / "model" not in deleted


# A full disk


@pytest.mark.parametrize("aside", [write_aside, write_folder_aside])
def test_a_full_disk_names_the_output(tmp_path: Path, aside: Aside):
    with (
        pytest.raises(UserError, match=r"model: No space left on device; free the disk and run again"),
        aside(tmp_path / "model"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_another_failure_is_not_called_a_full_disk(tmp_path: Path):
    with pytest.raises(PermissionError), write_aside(tmp_path / "model"):
        raise PermissionError(13, "Permission denied")
