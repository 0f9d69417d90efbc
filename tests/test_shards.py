"""Where shards are cut, what is kept of them, and reading arrays by position: pytest tests/test_shards.py"""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from framefold.data.array_files import ArrayFile
from framefold.data.shards import MAX_VIDEOS, MIN_VIDEOS, KeptShards, cut_shards

IDS = [str(10**19 + 7919 * row) for row in range(30_000)]


def test_shards_hold_every_video_once_and_in_order() -> None:
    shards = list(cut_shards(IDS))
    assert [video for shard in shards for video in shard] == IDS
    assert all(MIN_VIDEOS <= len(shard) <= MAX_VIDEOS for shard in shards[:-1])
    assert 700 < len(IDS) / len(shards) < 1300


@pytest.mark.parametrize("place", [0, 12_345, 29_999])
def test_one_video_more_or_less_changes_the_shards_around_it_alone(place: int) -> None:
    """With cuts at fixed numbers, every shard behind the place would be another one."""
    before = {tuple(shard) for shard in cut_shards(IDS)}
    for changed in (IDS[:place] + IDS[place + 1 :], [*IDS[:place], "1", *IDS[place:]]):
        after = {tuple(shard) for shard in cut_shards(changed)}
        assert len(after - before) <= 4


def keep(folder: Path) -> KeptShards:
    kept = KeptShards(folder, 3)
    kept.write("key", ["7", "8"], [2, 0], np.arange(6, dtype=np.float16).reshape(2, 3), [("8", "a.jpg", "broken")])
    return kept


def test_a_kept_shard_is_read_back(tmp_path: Path) -> None:
    shard = keep(tmp_path).read("key")
    assert (shard.ids, shard.n_frames, shard.rejected) == (["7", "8"], [2, 0], [("8", "a.jpg", "broken")])


@pytest.mark.parametrize("name", ["key.npy", "key.npy.seal"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damage_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    kept = keep(tmp_path)
    assert kept.has("key")
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).unlink()
    if damage != "gone":
        (tmp_path / name).write_bytes(data[:-5] if damage == "cut" else data)
    assert not kept.has("key")
    keep(tmp_path)
    assert kept.has("key")


def test_features_without_their_seal_are_not_there(tmp_path: Path) -> None:
    """A run that is killed between the two files has not finished the shard."""
    kept = keep(tmp_path)
    (tmp_path / "key.npy.seal").unlink()
    assert not kept.has("key")


def test_a_shard_that_is_made_twice_is_never_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes may make the same one; who is done first reads it while the other still writes."""
    kept, replace, seen = keep(tmp_path), os.replace, []

    def look(*paths: Path) -> None:
        seen.append((kept.has("key"), kept.read("key").ids))
        replace(*paths)
        seen.append((kept.has("key"), kept.read("key").ids))

    monkeypatch.setattr(os, "replace", look)
    keep(tmp_path)
    assert seen == [(True, ["7", "8"])] * 4  # features, then their seal


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, np.ndarray]:
    array = np.random.default_rng(0).normal(size=(2, 50, 3)).astype(np.float16)
    np.save(tmp_path / "table.npy", array)
    return tmp_path / "table.npy", array


def test_rows_of_a_file_are_those_of_the_array(table: tuple[Path, np.ndarray]) -> None:
    path, array = table
    second = ArrayFile(path, first=50, rows=50)
    assert (len(second), second.shape, second.dtype) == (50, (50, 3), np.float16)
    np.testing.assert_array_equal(second.rows(10, 7), array[1, 10:17])
    np.testing.assert_array_equal(second[np.array([49, 0, 7])], array[1][[49, 0, 7]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(second))[np.array([3])], array[1][[3]])


def test_a_file_that_is_cut_short_is_refused(table: tuple[Path, np.ndarray]) -> None:
    path, _ = table
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="bytes"):
        ArrayFile(path)
