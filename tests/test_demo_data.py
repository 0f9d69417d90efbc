"""The generated data set: pytest tests/test_demo_data.py"""

import csv
import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from framefold.data.demo.write import write_demo
from framefold.params.demo import DemoParams

SMALL = DemoParams(
    seed=7,
    labeled=80,
    unlabeled=120,
    test=60,
    groups=4,
    categories=8,
    smallest_class=3,
    min_frames=2,
    max_frames=3,
    frame_size=32,
    label_noise=0.05,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "one"
    write_demo(root, SMALL, workers=2, guard=lambda: None)
    return root


def tree(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def records(root: Path, split: str) -> list[dict]:
    return json.loads((root / f"annotations/{split}.json").read_text(encoding="utf-8"))


def truths(root: Path) -> dict[str, str]:
    """True category of every video that is not labelled."""
    return dict(table(root, "unlabeled_truth") + table(root, "test_truth"))


def table(root: Path, name: str) -> list[list[str]]:
    return list(csv.reader((root / f"annotations/{name}.csv").read_text().splitlines()))


def test_same_params_give_the_same_bytes_with_any_number_of_workers(demo: Path, tmp_path: Path):
    write_demo(tmp_path / "again", SMALL, workers=1, guard=lambda: None)
    assert tree(tmp_path / "again") == tree(demo)


def test_another_seed_gives_other_videos(demo: Path, tmp_path: Path):
    write_demo(tmp_path / "other", SMALL.model_copy(update={"seed": 8}), workers=1, guard=lambda: None)
    assert not {r["id"] for r in records(tmp_path / "other", "test")} & {r["id"] for r in records(demo, "test")}


@pytest.mark.parametrize(("split", "size"), [("labeled", 80), ("unlabeled", 120), ("test", 60)])
def test_layout_is_the_official_one(demo: Path, split: str, size: int):
    videos = records(demo, split)
    assert len(videos) == size
    for video in videos:
        assert ("category_id" in video) == (split == "labeled")
        path = demo / "zip_frames" / split / video["id"][-3:] / f"{video['id']}.zip"
        with zipfile.ZipFile(path) as archive:
            assert len(archive.namelist()) in (0, 2, 3)
            assert archive.namelist() == sorted(archive.namelist())


def test_some_ids_do_not_fit_into_64_bits(demo: Path):
    ids = [int(video["id"]) for split in ("labeled", "unlabeled", "test") for video in records(demo, split)]
    assert max(ids) > 2**63
    assert len(str(max(ids))) <= 20


def test_the_rarest_class_has_the_size_asked_for(demo: Path):
    labels = [video["category_id"] for video in records(demo, "labeled")]
    assert len(set(labels)) == SMALL.categories
    assert min(map(labels.count, set(labels))) == SMALL.smallest_class


def test_reuploads_cross_splits_and_keep_their_class(demo: Path):
    """Leaks must be visible when someone makes one: the same video stands in several splits under an edited title."""
    split_of = {video["id"]: split for split in ("labeled", "unlabeled", "test") for video in records(demo, split)}
    pairs = table(demo, "reuploads")
    assert any(split_of[copy] != split_of[original] for copy, original in pairs)
    known = truths(demo)
    assert all(known[copy] == known[original] for copy, original in pairs if copy in known and original in known)


def test_the_oracle_needs_both_modalities(demo: Path):
    oracle = json.loads((demo / "annotations/oracle.json").read_text())
    assert oracle["n"] == SMALL.test
    assert oracle["both"]["top1"] > max(oracle["text"]["top1"], oracle["frames"]["top1"])
