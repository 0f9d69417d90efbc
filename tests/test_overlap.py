"""Encoding ahead of the students in `framefold predict`: .venv/bin/pytest tests/test_overlap.py"""

import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from framefold.data.extraction import Shard
from framefold.errors import UserError
from framefold.inference.block_stores import feature_blocks, text_blocks
from framefold.inference.overlap import Ahead, InTurn
from framefold.storage import write_parquet


def counting(n, started=None, closed=None, fails_at=None):
    """A maker of 0..n-1 that notes what it has made, and that it was closed."""

    def make(guard):
        try:
            for number in range(n):
                guard()
                if number == fails_at:
                    raise UserError("broken shard")
                if started is not None:
                    started.append(number)
                yield number
        finally:
            if closed is not None:
                closed.append(threading.current_thread().name)

    return make


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def test_items_come_whole_and_in_order():
    closed: list[str] = []
    with Ahead(counting(50, closed=closed), 2) as items:
        assert list(items) == list(range(50))
    assert closed == ["ahead"]


def test_in_turn_nothing_is_made_before_it_is_asked_for():
    started, closed = [], []
    with InTurn(counting(5, started, closed)) as items:
        assert next(iter(items)) == 0
        time.sleep(0.1)
        assert started == [0]
        assert list(items) == [1, 2, 3, 4]
    assert closed == ["MainThread"]
    assert items.busy == items.waited


def test_it_works_ahead_but_not_further_than_the_limit():
    """While one item is used, the next ones are made: `limit` wait and one more is ready to be put."""
    started: list[int] = []
    with Ahead(counting(50, started), 2) as items:
        assert next(iter(items)) == 0
        deadline = time.monotonic() + 10
        while len(started) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert started == [0, 1, 2, 3]


def test_an_error_of_the_maker_is_raised_where_the_items_are_used():
    seen = []
    with pytest.raises(UserError, match="broken shard"), Ahead(counting(9, fails_at=3), 1) as items:
        seen.extend(items)
    assert seen == [] or seen == [0, 1, 2]


def test_an_error_of_the_user_ends_the_maker_at_once():
    started, closed = [], []
    with pytest.raises(ZeroDivisionError), Ahead(counting(10**9, started, closed), 1) as items:
        all(1 // number for number in items)
    assert len(started) <= 4
    assert closed == ["ahead"]


def test_a_maker_that_waits_for_room_ends_when_nobody_takes_anything():
    closed: list[str] = []
    with Ahead(counting(10, closed=closed), 1):
        time.sleep(0.3)
    assert closed == ["ahead"]


def test_waiting_and_working_are_timed():
    def slow(guard):
        for number in range(4):
            time.sleep(0.05)
            yield number

    with Ahead(slow, 1) as items:
        list(items)
    assert items.busy == pytest.approx(0.2, abs=0.15)
    assert items.waited == pytest.approx(0.2, abs=0.15)


# blocks --------------------------------------------------------------------------------------------------------------


def shards(sizes, seed=0):
    """Shards of the given numbers of videos, with 0 to 3 frames each; and all of their features."""
    rng, made, start = np.random.default_rng(seed), [], 0
    for size in sizes:
        counts = rng.integers(0, 4, size).tolist()
        features = rng.normal(size=(sum(counts), 5)).astype(np.float16)
        made.append(([str(start + i) for i in range(size)], Shard(counts, features, [])))
        start += size
    return made


@pytest.mark.parametrize("sizes", [[], [0], [7], [4], [4, 4], [1, 1, 1], [3, 9, 0, 2], [20], [1, 25, 3]])
def test_blocks_do_not_depend_on_how_videos_came(sizes):
    """Shards of any size give the same blocks of four: every video once, with its own frames."""
    made = shards(sizes)
    blocks = list(feature_blocks(made, 4))
    ids = [video for ids, _ in made for video in ids]
    assert [block.ids for block in blocks] == [ids[i : i + 4] for i in range(0, len(ids), 4)]
    frames = [block.frames(row) for block in blocks for row in range(len(block))]
    counts = [n for _, shard in made for n in shard.n_frames]
    expected = np.split(np.concatenate([shard.features for _, shard in made]), np.cumsum(counts)[:-1]) if counts else []
    assert len(frames) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))


def test_chosen_frames_are_given_in_their_order():
    (block,) = feature_blocks(shards([6]), 10)
    row = int(np.argmax(block.counts))
    assert np.array_equal(block.frames(row, np.array([2, 0])), block.frames(row)[[2, 0]])


def test_a_block_holds_no_memory_of_the_others():
    first, *_ = feature_blocks(shards([400]), 4)
    assert first.features.base is None


@pytest.mark.parametrize("size", [3, 8, 100])
def test_text_is_cut_into_the_same_blocks(tmp_path, size):
    ids = [str(row) for row in range(20)]
    write_parquet(tmp_path / "s.parquet", pa.table({"id": ids}))
    found = [batch["id"].to_pylist() for batch in text_blocks(tmp_path / "s.parquet", size)]
    assert found == [ids[i : i + size] for i in range(0, 20, size)]
