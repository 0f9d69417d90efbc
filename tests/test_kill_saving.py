"""A process killed while it saves leaves a whole checkpoint.

.venv/bin/python -m pytest -m medium tests/test_kill_saving.py
"""

import multiprocessing
import random
import time
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest
import torch

from framefold.scratch import Scratch

pytestmark = pytest.mark.medium

KILLS = 25
SIZE = 1 << 21  # numbers: 8 MiB, so most of the time goes into writing
LONGEST = 0.15  # seconds from the first save to the kill; a save takes a tenth of that


def save_forever(saved: "Synchronized[int]") -> None:
    torch.set_num_threads(1)
    with Scratch("item", {}) as scratch:
        state = scratch.load()
        number = state["number"] if state else 0
        while True:
            number += 1
            scratch.save({"number": number, "weights": torch.full((SIZE,), float(number))})
            saved.value = number


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("DVC_STAGE", raising=False)
    return tmp_path


def test_a_kill_while_saving_costs_at_most_that_save(folder: Path, caplog: pytest.LogCaptureFixture):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "framefold.scratch"])  # imported once, not KILLS times
    saved, draw, torn = context.Value("q", 0), random.Random(), 0
    for _ in range(KILLS):
        before = saved.value
        process = context.Process(target=save_forever, args=(saved,))
        process.start()
        while saved.value == before:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(draw.uniform(0, LONGEST))
        process.kill()
        process.join()
        torn += any((folder / ".scratch/item").glob(".checkpoint-*.aside"))
        with Scratch("item", {}) as scratch:
            state = scratch.load()
        assert state is not None
        assert saved.value <= state["number"] <= saved.value + 1
        assert state["weights"].eq(state["number"]).all()
    assert "damaged" not in caplog.text
    assert torn >= KILLS / 5, "too few kills fell into a save to say anything"
