"""One stage on several GPUs of this machine: FRAMEFOLD_PROCESSES=N starts it N times over, as `torchrun` would.

What DVC runs stays the same one line: nothing in dvc.yaml or dvc.lock depends on how many processes a machine has room
for. Over several machines a stage runs under `torchrun` itself, see docs/scaling.md.
"""

import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from framefold.errors import UserError
from framefold.runtime import load_runtime

PATIENCE = 30.0  # seconds for the others when one has failed: they may hang in an exchange with it
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


def on_several_processes(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate the entry point of a stage that knows of several processes; `processes` of the runtime says how many."""

    @functools.wraps(main)
    def run() -> None:
        processes = load_runtime().processes
        if processes == 1 or "RANK" in os.environ:
            return main()
        stage = sys.modules["__main__"].__spec__
        assert stage is not None, "a stage is started as `python -m stages.NAME`"
        return launch([sys.executable, "-m", stage.name, *sys.argv[1:]], processes)

    return run


def launch(command: Sequence[str], processes: int) -> None:
    """Run `command` in so many processes that find each other; SIGTERM and SIGINT are passed on to them.

    UserError: one of them failed; then the others are ended. SystemExit(128 + signal): they stopped when told to.
    """
    with started(command, processes) as ranks, signals_for(ranks) as received:
        while None in (codes := [rank.poll() for rank in ranks]) and not any(codes):
            time.sleep(0.1)
        end(ranks)
    failed = next((rank for rank, code in enumerate(codes) if code), None)
    if failed is None:
        return
    if received:
        raise SystemExit(128 + received[0])
    code = codes[failed] or 0
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    raise UserError(
        f"process {failed} of {processes} {how}, see above; the others were ended, run again: what was saved is kept"
    )


@contextlib.contextmanager
def started(command: Sequence[str], processes: int) -> Iterator[list[subprocess.Popen]]:
    """The processes by rank; none is left at the end."""
    shared, ranks = meeting_point(processes), list[subprocess.Popen]()
    die_with_parent = _death_wish()
    try:
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            ranks.append(subprocess.Popen(command, env={**os.environ, **shared, **own}, preexec_fn=die_with_parent))
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def meeting_point(processes: int) -> dict[str, str]:
    """What `torch.distributed` reads from the environment, and each process's share of the cores."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cores = max(1, len(os.sched_getaffinity(0)) // processes)
    return {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cores)),
    }


@contextlib.contextmanager
def signals_for(ranks: list[subprocess.Popen]) -> Iterator[list[int]]:
    """Pass SIGTERM and SIGINT on, as SIGTERM: Ctrl-C has reached the ranks too, and a second one would not wait."""
    received: list[int] = []

    def pass_on(number: int, _: object) -> None:
        received.append(number)
        for process in ranks:
            process.terminate()

    handlers = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def end(ranks: list[subprocess.Popen]) -> None:
    """Ask all to end and wait, as long as patience lasts."""
    deadline = time.monotonic() + PATIENCE
    for process in ranks:
        process.terminate()
    for process in ranks:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))


def _death_wish() -> Callable[[], None] | None:
    """To be called in a new process: it gets SIGTERM should its parent be killed. Linux only."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(END_WITH_PARENT, signal.SIGTERM)
