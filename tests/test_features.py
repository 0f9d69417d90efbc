"""The feature store: what is written is read back, whatever interrupted the writing; broken stores are refused by name.

pytest tests/test_features.py
"""

import pickle
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from framefold.data import features
from framefold.data.features import FeatureStore, write_store
from framefold.data.shards import KeptShards
from framefold.errors import UserError
from framefold.storage import read_json, write_json

COUNTS = [[2, 0, 3], [0, 0], [1, 4]]  # frames per video, by shard; the second shard has none
DIM = 4


def shard_features(shard: int) -> np.ndarray:
    return np.random.default_rng(shard).normal(size=(sum(COUNTS[shard]), DIM)).astype(np.float16)


def write_shard(kept: KeptShards, shard: int) -> str:
    ids = [f"{shard}{video}" for video in range(len(COUNTS[shard]))]
    kept.write(str(shard), ids, COUNTS[shard], shard_features(shard), [(ids[0], "0000.jpg", "not a whole image")])
    return str(shard)


def build(folder: Path, target: Path) -> dict[str, int]:
    kept = KeptShards(folder, DIM)
    keys = [write_shard(kept, shard) for shard in range(len(COUNTS))]
    return write_store(target, kept, keys, {"encoder": "tiny"})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    build(tmp_path / "scratch", tmp_path / "store")
    return tmp_path / "store"


def test_every_video_has_its_own_frames(store: Path) -> None:
    opened, expected = FeatureStore(store), []
    for shard, counts in enumerate(COUNTS):
        expected += np.split(shard_features(shard), np.cumsum(counts)[:-1])
    assert (len(opened), opened.dim, opened.counts.tolist()) == (7, DIM, [2, 0, 3, 0, 0, 1, 4])
    assert opened.ids.to_pylist() == ["00", "01", "02", "10", "11", "20", "21"]
    for row, frames in enumerate(expected):
        assert opened.frames(row).dtype == np.float16
        np.testing.assert_array_equal(opened.frames(row), frames)


def test_single_frames_can_be_asked_for(store: Path) -> None:
    opened = FeatureStore(store)
    np.testing.assert_array_equal(opened.frames(2, np.array([2, 0])), opened.frames(2)[[2, 0]])


def test_a_store_travels_to_a_worker(store: Path) -> None:
    opened = FeatureStore(store)
    opened.frames(0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(opened)).frames(6), opened.frames(6))


def test_more_shards_than_may_be_open_at_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "OPEN_SHARDS", 1)
    opened = FeatureStore(store)
    for row in (0, 6, 0):
        assert len(opened.frames(row)) == opened.counts[row]
    assert len(opened._files) == 1


def test_rejected_frames_are_listed_and_counted(tmp_path: Path) -> None:
    counts = build(tmp_path / "scratch", tmp_path / "store")
    assert counts == {"videos": 7, "frames": 10, "rejected_frames": 3}
    assert pq.read_table(tmp_path / "store/rejected.parquet").to_pydict()["id"] == ["00", "10", "20"]


def test_nothing_is_published_when_the_run_must_stop(tmp_path: Path) -> None:
    def orphaned() -> None:
        raise UserError("the parent has gone")

    kept = KeptShards(tmp_path / "scratch", DIM)
    key = write_shard(kept, 0)
    with pytest.raises(UserError, match="parent"):
        write_store(tmp_path / "store", kept, [key], {}, orphaned)
    assert not (tmp_path / "store").exists()
    assert kept.has(key)


def test_what_was_read_does_not_stay_in_memory(tmp_path: Path) -> None:
    """The store is larger than the growth that is allowed; through a memory map all of it would count."""
    kept = KeptShards(tmp_path / "scratch", 1024)
    kept.write("big", [str(row) for row in range(64)], [512] * 64, np.ones((512 * 64, 1024), np.float16), [])
    write_store(tmp_path / "store", kept, ["big"], {})
    opened = FeatureStore(tmp_path / "store")
    opened.frames(0)
    before = psutil.Process().memory_info().rss
    for row in range(64):
        assert opened.frames(row)[-1, -1] == 1
    assert psutil.Process().memory_info().rss - before < 16 << 20


def test_a_missing_store_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.json.*dvc repro"):
        FeatureStore(tmp_path / "nowhere")


def test_an_index_of_another_store_is_refused(store: Path) -> None:
    manifest = read_json(store / "manifest.json")
    write_json(store / "manifest.json", manifest | {"rows": 8})
    with pytest.raises(UserError, match=r"7 rows.*says 8"):
        FeatureStore(store)


@pytest.mark.parametrize("damage", [b"", np.zeros((5, DIM + 1), np.float16)])
def test_a_damaged_shard_is_refused(store: Path, damage: bytes | np.ndarray) -> None:
    path = store / features.shard_name(0)
    path.unlink()
    path.write_bytes(damage) if isinstance(damage, bytes) else np.save(path, damage)
    with pytest.raises(UserError, match=r"shard-00000\.npy"):
        FeatureStore(store).frames(0)
