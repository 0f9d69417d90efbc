"""A dvc.lock that a killed `dvc` has left torn: .venv/bin/python -m pytest tests/test_lockfile.py

With DVC itself this is tested in test_kill_dvc.py.
"""

import fcntl
import logging
from pathlib import Path

import pytest
import yaml

from framefold.lockfile import is_whole, mend_lock

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "dvc.lock").read_text(encoding="utf-8").splitlines(keepends=True)
STAGES = yaml.safe_load("".join(LINES[:700]))["stages"]
NAMES = list(STAGES)[:-1]  # the last one is cut
TEXT = "".join(LINES[: next(number for number, line in enumerate(LINES) if line.startswith(f"  {list(STAGES)[-1]}:"))])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/lock").touch()
    return tmp_path


def mended(text: str) -> str | None:
    Path("dvc.lock").write_text(text, encoding="utf-8")
    mend_lock()
    return Path("dvc.lock").read_text(encoding="utf-8") if Path("dvc.lock").exists() else None


def test_a_whole_lock_is_left_alone(caplog: pytest.LogCaptureFixture):
    assert len(NAMES) > 3
    assert mended(TEXT) == TEXT
    assert caplog.text == ""


def test_wherever_it_was_cut_its_beginning_is_kept():
    """At every 97th byte: whole stages stay as they were, and at most the one that was cut is dropped."""
    for cut in range(0, len(TEXT), 97):
        kept = mended(TEXT[:cut])
        begun = sum(f"\n  {name}:\n" in TEXT[:cut] for name in NAMES)
        if kept is None:
            assert begun <= 1
            continue
        assert is_whole(kept)
        assert TEXT.startswith(kept) or kept == TEXT[:cut]
        assert len(yaml.safe_load(kept)["stages"]) in (begun, begun - 1)


def test_it_says_so(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        mended(TEXT[:-200])
    assert "dvc.lock: cut short by a kill" in caplog.text


def test_what_a_dvc_is_writing_is_left_alone(folder: Path):
    with (folder / ".dvc/tmp/lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert mended(TEXT[:-200]) == TEXT[:-200]


def test_no_lock_is_no_error():
    mend_lock()
    assert not Path("dvc.lock").exists()
