"""Progress lines and the log of rates: pytest tests/test_progress.py"""

import json
import logging
from pathlib import Path

import pytest

from framefold.progress import RATES, Progress


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path


def entries() -> list[dict]:
    return [json.loads(line) for line in RATES.read_text(encoding="utf-8").splitlines()]


def test_each_piece_of_work_leaves_a_line() -> None:
    for title in ("one", "two"):
        progress = Progress(title, total=None, unit="videos")
        progress.add(2, also={"frames": 7})
        progress.add(1, also={"frames": 3})
        progress.close(rejected="1")
    assert [(entry["what"], entry["counts"], entry["rejected"]) for entry in entries()] == [
        ("one", {"videos": 3, "frames": 10}, "1"),
        ("two", {"videos": 3, "frames": 10}, "1"),
    ]
    assert entries()[0]["peak_mib"] > 1


def test_a_resumed_run_counts_only_its_own_work() -> None:
    progress = Progress("resumed", total=10, unit="videos", start=8)
    progress.add(2)
    progress.close()
    assert entries()[0]["counts"] == {"videos": 2}


def test_rates_stand_on_the_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress("extract", total=None, unit="videos")
    progress.started -= 2.0
    progress.add(100, also={"frames": 1000})
    progress.close()
    assert caplog.messages[-1].startswith("extract: 100 videos  ")
    assert " videos/s  " in caplog.messages[-1]
    assert caplog.messages[-1].endswith(" frames/s")


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    Path("logs").write_text("in the way")
    Progress("on", total=None, unit="videos").close()
    assert Path("logs").read_text() == "in the way"
