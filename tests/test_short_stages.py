"""Short stages start over, and publish nothing once stopped or orphaned: pytest tests/test_short_stages.py"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from interruptions import before_call, contents, scratch_only_locks, terminate
from mini_root import PARAMS, MiniRoot

from framefold.data.demo import write
from stages import demo_data, ingest, reweight, split


def prepare_split(folder: Path, patch: pytest.MonkeyPatch) -> None:
    MiniRoot(folder, patch).fill().finish()
    ingest.main()
    for path in Path("metrics").iterdir():
        path.unlink()


def prepare_reweight(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Predictions of eight videos; what the weights are is tested elsewhere."""

    class Labeled:
        labels = groups = np.arange(8) % 2
        categories = ("0100", "0200")

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: np.arange(8)

    patch.setattr(reweight, "read_labeled", Labeled)
    patch.setattr(reweight, "read_aligned", lambda path, ids: np.zeros((8, 2), np.float32))
    fit = {"method": "none", "used": False}
    patch.setattr(reweight, "fit_reweighting", lambda *arguments: fit)
    patch.setattr(sys, "argv", ["reweight", "--arch", "single_stream"])


def prepare_demo_data(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """A generator of one video, and the real manifest."""

    def write_demo(root: Path, *arguments: Any) -> dict[str, Any]:
        (root / "zip_frames" / "test" / "001").mkdir(parents=True)
        (root / "zip_frames" / "test" / "001" / "1001.zip").write_bytes(b"")
        return {"both": {"score": 1.0}}

    patch.setattr(demo_data, "write_demo", write_demo)
    patch.setattr(sys, "argv", ["demo_data", "demo"])


STAGES = [
    (split, prepare_split, "stages.split.make_folds", ["data/folds.parquet", "metrics/*"]),
    (reweight, prepare_reweight, "stages.reweight.fit_reweighting", ["models/reweight/*"]),
    (demo_data, prepare_demo_data, "stages.demo_data.write_manifest", ["data/demo/*"]),
]


@pytest.mark.parametrize("end", ["SIGTERM", "orphan"])
@pytest.mark.parametrize(("stage", "prepare", "within", "outputs"), STAGES, ids=["split", "reweight", "demo_data"])
def test_nothing_is_published_once_stopped(
    stage: ModuleType,
    prepare: Callable[[Path, pytest.MonkeyPatch], None],
    within: str,
    outputs: list[str],
    end: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM (exit code 143) or the end of its dvc (1) while it works; the next run publishes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes(PARAMS.read_bytes())
    for name in ("DVC_STAGE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    prepare(tmp_path, monkeypatch)
    with pytest.MonkeyPatch.context() as patch:

        def lose() -> None:
            patch.setattr("framefold.parent.ParentWatch.gone", lambda self: True)

        before_call(patch, within, 1, terminate if end == "SIGTERM" else lose)
        with pytest.raises(SystemExit) as stop:
            stage.main()
    assert stop.value.code == (143 if end == "SIGTERM" else 1)
    assert contents(outputs) == {}
    stage.main()
    assert contents(outputs) != {}
    assert scratch_only_locks()


def test_the_demo_stops_between_its_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guard is asked while workers are at work, not only at the end."""

    class Stopped(Exception):
        pass

    def guard() -> None:
        raise Stopped

    from test_demo_data import SMALL

    monkeypatch.setattr(write, "write_truths", lambda *arguments: pytest.fail("all videos were made"))
    with pytest.raises(Stopped):
        write.write_demo(tmp_path / "demo", SMALL, 1, guard)
