"""How `framefold predict` ends, well or badly: .venv/bin/python -m pytest -m "not slow" tests/test_predict_ends.py

Whatever happens, no temporary folder, no thread and no worker process is left. Run as a script, this file is the
command with students that take their time.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from framefold.data import extraction, shards
from framefold.errors import UserError
from framefold.inference import predict_command
from framefold.inference.predict_command import run
from tests import tiny_project

ROOT = Path(__file__).parents[1]
OWN = Path("data/predictions/result.csv")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_project.copy(tmp_path / "project"))


@pytest.fixture(autouse=True, params=[True, False], ids=["ahead", "in_turn"])
def room(request, monkeypatch):
    """Both ways of working, whatever cores this machine has."""
    monkeypatch.setattr(predict_command, "has_room_ahead", lambda: request.param)
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Shards of seven videos, and blocks of sixteen of them."""
    monkeypatch.setattr(shards, "MIN_VIDEOS", 7)
    monkeypatch.setattr(shards, "MAX_VIDEOS", 7)
    monkeypatch.setattr(predict_command, "BLOCK", 16)


def left_over() -> list[str]:
    folders = [path.name for path in Path().glob(".framefold-predict-*")]
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    return folders + [name for name in threads if name == "ahead"]


def test_no_videos_are_an_empty_submission(project):
    Path("raw/annotations/test.json").write_text("[]")
    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    assert Path("out.csv").read_bytes() == b""


def test_an_error_while_encoding_ends_the_command_with_its_line(project, small_blocks, monkeypatch):
    """In the second shard, while students are at work: a zip that was changed under way."""
    shard, calls = extraction.EncodedFrames._shard, []

    def fails(self, ids, videos):
        calls.append(ids)
        if len(calls) == 4:
            raise UserError("raw/zip_frames: changed under way")
        return shard(self, ids, videos)

    monkeypatch.setattr(extraction.EncodedFrames, "_shard", fails)
    with pytest.raises(UserError, match="changed under way"):
        run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    assert not Path("out.csv").exists()
    assert left_over() == []


def test_an_error_of_the_students_ends_the_encoder(project, small_blocks, monkeypatch):
    calls = []
    monkeypatch.setattr(shards, "MIN_VIDEOS", 1)
    monkeypatch.setattr(shards, "MAX_VIDEOS", 1)
    shard = extraction.EncodedFrames._shard

    def counted(self, ids, videos):
        calls.append(ids)
        return shard(self, ids, videos)

    monkeypatch.setattr(extraction.EncodedFrames, "_shard", counted)

    def fails(*arguments):
        raise MemoryError

    monkeypatch.setattr(predict_command, "block_logits", fails)
    with pytest.raises(MemoryError):
        run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    assert 16 <= len(calls) < 40  # of forty shards of one video
    assert not Path("out.csv").exists()
    assert left_over() == []


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything(project, room, number):
    """While shards are encoded and students compute: exit code, no folder, no worker, no output."""
    if not room and number == signal.SIGINT:
        pytest.skip("a thread makes the difference, not the number of the signal")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/src", "FRAMEFOLD_WORKERS": "2", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, __file__, str(int(room))], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not Path("computing").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.send_signal(number)
    process.send_signal(number)  # the second one does not disturb the cleaning up
    assert process.wait(30) == 128 + number
    assert left_over() == []
    assert not Path("out.csv").exists()
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert b"Traceback" not in process.stderr.read()


@pytest.mark.medium
def test_results_do_not_depend_on_workers(project, monkeypatch):
    monkeypatch.setenv("FRAMEFOLD_WORKERS", "2")
    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    assert Path("out.csv").read_text() == OWN.read_text()
    assert left_over() == []


def test_rates_are_noted(project):
    shutil.rmtree("logs", ignore_errors=True)
    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))
    entries = [json.loads(line) for line in Path("logs/rates.jsonl").read_text().splitlines()]
    (entry,) = [entry for entry in entries if entry["what"] == "predict"]
    assert entry["counts"]["videos"] == tiny_project.SIZES["test"]
    assert entry["counts"]["frames"] > 0
    assert entry["encoder"].endswith(" frames/s")
    assert entry["students_waited"].endswith(" %")


def main(room: bool) -> None:
    def slow(*arguments):
        Path("computing").touch()
        while True:
            time.sleep(0.05)

    shards.MIN_VIDEOS, shards.MAX_VIDEOS, predict_command.BLOCK = 7, 7, 16
    predict_command.block_logits, predict_command.has_room_ahead = slow, lambda: room
    run(Path("raw"), Path("out.csv"), Path("models/ensemble"))


if __name__ == "__main__":
    main(sys.argv[1] == "1")
