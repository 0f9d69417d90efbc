"""Has the `dvc` that started this process gone? A killed `dvc` leaves its child running: an orphan with old params."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

LAUNCHERS = ("dvc", "python")  # what a process that runs DVC has on its command line


class ParentWatch:
    """Remembers the process that started the stage; a stage started by hand has none and is never orphaned.

    DVC sets DVC_STAGE and DVC_ROOT in the environment of what it runs, so DVC is the nearest ancestor without this
    very DVC_STAGE: shells, `torchrun` and the like in between have it.
    """

    def __init__(self) -> None:
        self.orphan_from_start = False
        self.starter: psutil.Process | None = None
        if "DVC_STAGE" in os.environ and "DVC_ROOT" in os.environ:
            self.starter = _starter(os.environ["DVC_STAGE"])
            self.orphan_from_start = self.starter is None

    @property
    def pid(self) -> int | None:
        return self.starter.pid if self.starter else None

    def gone(self) -> bool:
        """True once the starter has ended; a zombie (nobody has collected its exit status) has ended too."""
        import psutil

        if self.starter is None:
            return self.orphan_from_start
        try:
            return not self.starter.is_running() or self.starter.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return True


def _starter(stage: str) -> "psutil.Process | None":
    """The ancestor that runs DVC; None if it ended so early that init (or another reaper) is our ancestor instead."""
    import psutil

    for ancestor in psutil.Process().parents():
        try:
            if ancestor.environ().get("DVC_STAGE") == stage:
                continue
        except psutil.Error:
            pass  # not ours to read, hence not started for us
        try:
            command = " ".join(ancestor.cmdline())
        except psutil.Error:
            return ancestor
        return ancestor if any(name in command for name in LAUNCHERS) else None
    return None
