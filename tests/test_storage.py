"""Outputs on disk: .venv/bin/python -m pytest tests/test_storage.py"""

from pathlib import Path

from framefold.storage import drop_unlisted


def test_what_params_no_longer_name_is_dropped(tmp_path: Path):
    for name in ("single_stream", "dual_stream"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.json").touch()
    drop_unlisted(tmp_path, ["single_stream", "single_stream.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["single_stream", "single_stream.json"]


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path):
    drop_unlisted(tmp_path / "models", ["single_stream"])
    assert not (tmp_path / "models").exists()
