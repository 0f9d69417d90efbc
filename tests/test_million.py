"""The benchmark at a million, small: .venv/bin/python -m pytest -m slow tests/test_million.py"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.million import size_name
from benchmarks.million_memory import COMPARING

ROOT = Path(__file__).parents[1]


def test_a_small_run_is_never_called_a_million() -> None:
    assert [size_name(records) for records in (10**6, 100_000, 2000, 999_999, 250)] == [
        "1m",
        "100k",
        "2k",
        "999999",
        "250",
    ]


def test_only_stages_that_compare_ids_are_allowed_bytes_for_it() -> None:
    assert set(COMPARING) == {"ingest", "extract_frames", "pseudo_label"}


@pytest.mark.slow
def test_everything_is_measured_on_a_small_root(tmp_path: Path) -> None:
    """The real stages, DVC and the manifest, on 3,000 and 1,000 videos; nothing of it stays behind."""
    own = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "benchmarks.million", "--records", "3000", "--small", "1000"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert {"peak_rss_ratio_3k_over_1k", "noop_repro_seconds_3k", "manifest_refresh_seconds_3k"} <= figures.keys()
    assert not any(name.endswith(("_1m", "_100k")) for name in figures)
    assert all(value > 0 for value in figures.values())
    assert list(tmp_path.iterdir()) == []
