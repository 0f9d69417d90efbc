"""Blocks of results in a scratch folder, and processes that share them: .venv/bin/pytest tests/test_blocks.py"""

import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from framefold.errors import UserError
from framefold.inference import blocks, processes
from framefold.inference.blocks import BlockFolder, shared_folder
from framefold.inference.processes import Processes
from framefold.scratch import Scratch

ROWS, SIZE = 10, 4


@pytest.fixture
def folder(tmp_path, monkeypatch) -> BlockFolder:
    """Three blocks, written."""
    monkeypatch.setattr(blocks, "BLOCK", SIZE)
    written = BlockFolder(tmp_path / "blocks", ROWS)
    assert written.open() == [0, 1, 2]
    for number in (2, 0, 1):
        written.write(number, content()[written.rows_of(number)])
    return written


def content() -> np.ndarray:
    return np.arange(3.0 * ROWS, dtype=np.float32).reshape(ROWS, 3)


def test_blocks_come_back_in_order(folder):
    assert np.array_equal(np.concatenate(list(folder)), content())
    assert folder.open() == []


def test_no_rows_are_no_blocks(tmp_path):
    empty = BlockFolder(tmp_path / "blocks", 0)
    assert (empty.open(), list(empty)) == ([], [])


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "half"])
def test_a_damaged_block_is_dropped_with_a_warning_and_the_others_stay(folder, caplog, damage):
    path = sorted(folder.folder.iterdir())[1]
    whole = path.read_bytes()
    if damage == "half":  # killed before the file had its name
        path.rename(path.with_name("block-000001.17.aside"))
    else:
        path.write_bytes({"cut": whole[:-5], "changed": whole[:-1] + b"\1", "empty": b""}[damage])
    assert folder.open() == [1]
    assert len(list(folder.folder.iterdir())) == 2
    assert ("damaged block dropped" in caplog.text) == (damage != "half")


def test_a_missing_block_is_never_skipped(folder):
    sorted(folder.folder.iterdir())[1].unlink()
    with pytest.raises(UserError, match="block 1 is missing"):
        list(folder)


def test_content_is_on_the_disk_before_its_name(folder, monkeypatch):
    """A power cut between any two steps leaves no named block without its content."""
    steps: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        steps.append("sync folder" if path.is_dir() else f"sync {path.suffix} of {path.stat().st_size > 100}")
        sync(handle)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("name"), replace(*paths)))
    folder.write(0, content()[:SIZE])
    assert steps == ["sync .aside of True", "name", "sync folder"]


def test_a_process_that_outlived_its_start_gets_nothing_among_the_new_blocks(tmp_path, monkeypatch):
    """An orphan holds no lock: with other params its folder has gone, and it ends with an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    with Scratch("item", {"params": "old"}) as scratch:
        orphan = BlockFolder(shared_folder(scratch, Processes("item")), ROWS)
        orphan.open()
    with Scratch("item", {"params": "new"}) as scratch:
        new = BlockFolder(shared_folder(scratch, Processes("item")), ROWS)
        assert new.open() == [0]
        with pytest.raises(UserError, match="cannot be saved"):
            orphan.write(0, content())
        assert new.open() == [0]


# processes -----------------------------------------------------------------------------------------------------------


def start(monkeypatch, world: int) -> list[Processes]:
    """The processes of one start, all in this one."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(processes, "open_store", lambda item: store)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    started = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        started.append(Processes("item"))
    return started


class GaveUp(Exception):
    pass


def give_up() -> None:
    raise GaveUp


def test_others_wait_for_what_the_main_process_does_first(monkeypatch):
    main, other = start(monkeypatch, 2)
    with pytest.raises(GaveUp):  # not yet: whoever waits looks after signals
        other.main_first("claimed", lambda: pytest.fail("the main process does it"), give_up)
    assert main.main_first("claimed", lambda: [1, 2]) == [1, 2]
    assert other.main_first("claimed", lambda: pytest.fail("the main process does it"), give_up) == [1, 2]


def test_a_main_process_that_fails_gives_no_sign(monkeypatch):
    main, other = start(monkeypatch, 2)
    with pytest.raises(GaveUp):
        main.main_first("claimed", give_up)
    with pytest.raises(GaveUp):
        other.main_first("claimed", list, give_up)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_item_is_dealt_once(monkeypatch, world):
    monkeypatch.setenv("RANK", "0")
    started = start(monkeypatch, world) if world > 1 else [Processes("item")]
    taken: list[list[int]] = [[] for _ in started]

    def take(rank: int) -> None:
        taken[rank].extend(started[rank].deal("blocks", range(101)))

    threads = [threading.Thread(target=take, args=[rank]) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(itertools.chain(*taken)) == list(range(101))


def test_the_main_process_waits_for_all_others_at_the_end(monkeypatch):
    main, *others = start(monkeypatch, 3)
    others[0].join("done", give_up)
    with pytest.raises(GaveUp):
        main.join("done", give_up)
    others[1].join("done", give_up)
    main.join("done", give_up)


def test_processes_with_other_inputs_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    main, other = start(monkeypatch, 2)
    monkeypatch.setenv("RANK", "0")
    with Scratch("item", {"params": "a", "code": "c"}) as scratch:
        shared_folder(scratch, main)
    monkeypatch.setenv("RANK", "1")
    with Scratch("item", {"params": "b", "code": "c"}) as scratch, pytest.raises(UserError, match="other params than"):
        shared_folder(scratch, other)


def test_a_lost_launcher_is_one_line(monkeypatch):
    main, _ = start(monkeypatch, 2)

    class Gone:
        def add(self, *arguments):
            raise torch.distributed.DistNetworkError("connection reset\nat frame 1")

    main._store = Gone()
    with pytest.raises(UserError, match=r"process 0 of 2 has lost the others \(connection reset\); progress is kept"):
        next(main.deal("blocks", [1]))


def test_many_processes_without_a_launcher_are_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"WORLD_SIZE is 2.*torchrun"):
        Processes("item")
