"""Scratch folders: where a stage keeps its progress, so that it can be killed at any instant and goes on.

`${DVC_ROOT:-.}/.scratch/<item>/` belongs to one stage item (`finetune@single_stream-0`). One process at a time holds
it. It is stamped with a fingerprint of params, inputs and code, and removed when the outputs are published.

>>> with Scratch("finetune@single_stream-0", stage_fingerprint(params, inputs)) as scratch:
...     state = scratch.load()                     # None: nothing to resume
...     ...                                        # now and then: scratch.save(state); scratch.guard()
...     with write_folder_aside(target) as aside:
...         ...                                    # write the outputs into `aside`
...         scratch.guard()                        # last: an orphan must not publish
...     scratch.finish()
"""

import fcntl
import json
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from framefold.errors import UserError
from framefold.fingerprint import code_fingerprint, stage_fingerprint
from framefold.parent import ParentWatch
from framefold.runtime import is_main_process
from framefold.seals import fits_its_name, is_whole, named_by_digest, sealed, sealed_in
from framefold.storage import write_json

__all__ = ["OrphanedError", "Scratch", "code_fingerprint", "stage_fingerprint"]

log = logging.getLogger(__name__)

STAMP = "stamp.json"
CHECKPOINT = re.compile(r"checkpoint-(\d{6})-([0-9a-f]{32})\.pt")
PARENT_SECONDS = 1.0  # between looks at the parent process


class OrphanedError(UserError):
    """The dvc that started this stage has gone, so its outputs are no longer wanted."""


class Scratch:
    """Context manager around the work of one stage item. `folder` is free for files of the stage's own."""

    def __init__(self, item: str, fingerprint: Mapping[str, Any]):
        if not re.fullmatch(r"[\w@.-]+", item):
            raise ValueError(f"not usable as a folder name: {item!r}")
        self.item, self.fingerprint = item, json.loads(json.dumps(dict(fingerprint)))
        root = Path(os.environ.get("DVC_ROOT", ".")) / ".scratch"
        self.folder, self._lock_path = root / item, root / ".locks" / f"{item}.lock"
        self._lock: IO[str] | None = None
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._looked, self._lost = 0.0, False

    def __enter__(self) -> Self:
        self._parent = ParentWatch()
        self._catch_signals()
        if is_main_process():  # of many under torchrun, one owns the folder
            self._acquire()
            self._claim()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._lock:
            self._lock.close()  # releases the lock
            self._lock = None
        if self._signal is not None and isinstance(error, Exception) and not isinstance(error, UserError):
            self.guard()  # the signal went to worker processes too, and what they did not finish is missed here

    # ---- stopping

    def interrupted(self) -> bool:
        """Whether to save and stop: SIGTERM or SIGINT came, or the parent has gone (looked up once a second)."""
        if self._signal is None and time.monotonic() - self._looked >= PARENT_SECONDS:
            self._looked = time.monotonic()
            self._lost = self._parent.gone()
        return self._signal is not None or self._lost

    def guard(self) -> None:
        """Raise if this stage must not go on: SystemExit(128 + signal), or OrphanedError. Call it before publishing."""
        if self._signal is not None:
            log.info("%s: stopped by %s; its progress is kept", self.item, signal.Signals(self._signal).name)
            raise SystemExit(128 + self._signal)
        self.check_parent()

    def check_parent(self) -> None:
        """Raise OrphanedError when the dvc that started this stage has gone."""
        if self._parent.gone():
            started_by = f"dvc (pid {self._parent.pid})" if self._parent.pid else "dvc"
            raise OrphanedError(
                f"{self.item}: the {started_by} that started it has gone; progress is kept, run `dvc repro` again"
            )

    def _catch_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C does not wait
        self._signal = number
        outer = getattr(self._handlers.get(number), "__self__", None)
        if isinstance(outer, Scratch):  # a stage item within a stage: both are to stop
            outer._note(number, frame)

    # ---- owning the folder

    def _acquire(self) -> None:
        """Wait for the lock; it lasts as long as the process, so a dead holder never blocks."""
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self._lock_path.open("a+", encoding="utf-8")
        waiting = False
        while not self._try_lock():
            if not waiting:
                log.info("%s: process %s is at work on it; waiting until it ends", self.item, self._holder())
                waiting = True
            self.guard()
            time.sleep(0.2)
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def _try_lock(self) -> bool:
        assert self._lock is not None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _holder(self) -> str:
        return self._lock_path.read_text(encoding="utf-8").strip() or "(unknown)"

    def _claim(self) -> None:
        """Keep the folder if it was made of the same params, inputs and code; otherwise start an empty one."""
        stamp = self.folder / STAMP
        try:
            found = json.loads(stamp.read_text(encoding="utf-8"))
        except FileNotFoundError:
            found = None  # nothing there, or half removed
        except (OSError, ValueError):
            log.warning("%s: damaged, so unfinished work is dropped", stamp)
            found = None
        if found == self.fingerprint and self._is_sound():
            return
        if found is not None and found != self.fingerprint:
            changed = sorted(key for key in self.fingerprint | found if self.fingerprint.get(key) != found.get(key))
            log.info("%s: unfinished work dropped, made with other %s", self.item, ", ".join(changed))
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        write_json(stamp, self.fingerprint)

    def _is_sound(self) -> bool:
        """Whether a checkpoint goes on behind whole files; without one, each is looked at when it is asked for."""
        return not self._checkpoints() or all(map(is_whole, sealed_in(self.folder)))

    # ---- files of the stage's own

    def sealed(self, name: str) -> AbstractContextManager[Path]:
        """The path of a file or folder to write in `folder`; it is finished when the block ends without an error."""
        return sealed(self.folder / name)

    def has(self, name: str) -> bool:
        """Whether `name` was finished under `sealed` and is undamaged."""
        return is_whole(self.folder / name)

    def finish(self) -> None:
        """The outputs are published: remove the folder."""
        if is_main_process():
            (self.folder / STAMP).unlink(missing_ok=True)  # first: a half-removed folder is then never resumed
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- checkpoints

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint by `state`: tensors and plain values, nested. UserError when it can't be written."""
        import torch

        older = self._checkpoints()
        number = self._number(older[-1]) + 1 if older else 0
        with named_by_digest(self.folder, f"checkpoint-{number:06d}", ".pt") as file:
            torch.save(dict(state), file)  # type: ignore[arg-type]
        for path in older:
            path.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The last saved state, on the CPU; None if there is none. A damaged one is dropped with a warning."""
        import torch

        for path in reversed(self._checkpoints()):
            if fits_its_name(path):
                return torch.load(path, map_location="cpu", weights_only=True)
            log.warning("%s: damaged checkpoint dropped", path)
            if is_main_process():
                path.unlink(missing_ok=True)
        return None

    def _checkpoints(self) -> list[Path]:
        """Oldest first; more than one only if the process was killed between a save and its clean-up."""
        return sorted(path for path in self.folder.glob("checkpoint-*.pt") if CHECKPOINT.fullmatch(path.name))

    @staticmethod
    def _number(path: Path) -> int:
        return int(path.name.split("-")[1])
