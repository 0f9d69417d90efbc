"""FRAMEFOLD_PROCESSES starts a stage several times over: .venv/bin/python -m pytest tests/test_launch.py

The same with a stage, whose processes exchange gradients, is tested in test_kill_ranks.py.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

# A stage of which every process notes what it was given, then does what the file `orders` says.
STAGE = """
import os, pathlib, signal, sys, time
from framefold.errors import command
from framefold.launch import on_several_processes

@command
@on_several_processes
def main():
    rank, folder = os.environ.get("RANK", "alone"), pathlib.Path(sys.argv[1])
    if rank in (folder / "failing").read_text():
        sys.exit(3)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    names = ("LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    text = " ".join(os.environ.get(name, "-") for name in names)
    (folder / f"{rank}.aside").write_text(f"{os.getpid()} {text}")
    (folder / f"{rank}.aside").rename(folder / f"rank-{rank}")
    while not (folder / "stop").exists():
        time.sleep(0.01)

main()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "failing").touch()
    (tmp_path / "job.py").write_text(STAGE, encoding="utf-8")
    return tmp_path


@contextlib.contextmanager
def job(folder: Path, processes: str, **own: str) -> Iterator[subprocess.Popen]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "OMP_NUM_THREADS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "job", str(folder)],
        cwd=folder,
        env=environment | {"FRAMEFOLD_PROCESSES": processes} | own,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def at_work(folder: Path, ranks: list[str]) -> dict[str, list[str]]:
    """What each process noted: its pid and what it was given."""
    paths = {rank: folder / f"rank-{rank}" for rank in ranks}
    wait_for(lambda: all(path.exists() for path in paths.values()))
    return {rank: path.read_text(encoding="utf-8").split() for rank, path in paths.items()}


def is_running(pid: str) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_processes_find_each_other_and_share_the_cores(folder: Path):
    with job(folder, "2") as process:
        (_, *first), (_, *second) = at_work(folder, ["0", "1"]).values()
        (folder / "stop").touch()
        assert process.wait(60) == 0
    assert (first[0], second[0]) == ("0", "1")
    assert first[1:] == second[1:]
    assert first[1:3] == ["2", "127.0.0.1"]
    assert first[4] == str(max(1, len(os.sched_getaffinity(0)) // 2))


@pytest.mark.parametrize(("processes", "own", "rank"), [("1", {}, "alone"), ("2", {"RANK": "1"}, "1")])
def test_one_process_or_one_of_torchrun_starts_no_others(folder: Path, processes: str, own: dict[str, str], rank: str):
    with job(folder, processes, **own) as process:
        assert at_work(folder, [rank])[rank][0] == str(process.pid)


def test_what_a_job_script_left_in_the_environment_does_not_count(folder: Path):
    """Schedulers export these names for processes that they start themselves; the number of threads is the user's."""
    with job(folder, "2", WORLD_SIZE="1", MASTER_PORT="1", OMP_NUM_THREADS="3") as process:
        (_, *first), (_, *second) = at_work(folder, ["0", "1"]).values()
        (folder / "stop").touch()
        assert process.wait(60) == 0
    assert (first[1], first[4]) == (second[1], second[4]) == ("2", "3")
    assert first[3] == second[3] != "1"


def test_one_that_fails_ends_all(folder: Path):
    (folder / "failing").write_text("1", encoding="utf-8")
    with job(folder, "2") as process:
        error = process.communicate(timeout=60)[1]
        assert error == (
            "error: process 1 of 2 ended with 3, see above; the others were ended, run again: what was saved is kept\n"
        )
        assert process.returncode == 1


def test_one_that_is_killed_ends_all(folder: Path):
    with job(folder, "2") as process:
        pids = [noted[0] for noted in at_work(folder, ["0", "1"]).values()]
        os.kill(int(pids[0]), signal.SIGKILL)
        assert "process 0 of 2 was ended by SIGKILL" in process.communicate(timeout=20)[1]
        assert process.returncode == 1
    assert not any(map(is_running, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on(folder: Path, number: signal.Signals):
    with job(folder, "2") as process:
        pids = [noted[0] for noted in at_work(folder, ["0", "1"]).values()]
        process.send_signal(number)
        assert process.communicate(timeout=20)[1] == ""
        assert process.returncode == 128 + number
    assert not any(map(is_running, pids))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells a process that its parent was killed")
def test_processes_end_when_what_started_them_is_killed(folder: Path):
    with job(folder, "2") as process:
        pids = [noted[0] for noted in at_work(folder, ["0", "1"]).values()]
        process.kill()
        wait_for(lambda: not any(map(is_running, pids)), 20)
