"""The processes of one start (`torchrun`, `accelerate launch`) share work that needs no process group.

They meet in the launcher's store of keys, which lives and dies with this start: nothing that an older one left behind
can be taken for a sign of this one. Results go through a shared folder. A process that dies is the launcher's matter,
which ends the others; whoever waits here calls `pause`, which then raises.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from framefold.errors import UserError
from framefold.progress import Progress
from framefold.runtime import rank, world

if TYPE_CHECKING:
    from torch.distributed import Store

POLL_SECONDS = 0.05
T = TypeVar("T")
Pause = Callable[[], None]


def no_pause() -> None:
    """Nothing to look after yet: a signal ends the process at once."""


class Processes:
    """This process among those of its start; `item` is the stage item they work on. Alone it is the main process."""

    def __init__(self, item: str):
        self.item, self.rank, self.world = item, rank(), world()
        self._store = open_store(item) if self.world > 1 else None
        self._counts: dict[str, int] = {}

    @property
    def main(self) -> bool:
        """Whether this is the one process that owns the scratch folder, deletes and publishes."""
        return self.rank == 0

    def main_first(self, sign: str, work: Callable[[], T], pause: Pause = no_pause) -> T:
        """The main process does `work`, whose result (JSON-able) all others wait for. `sign` is used once a start."""
        if self.main:
            result = work()
            if self._store is not None:
                self._ask(self._store.set, sign, json.dumps(result))
            return result
        assert self._store is not None
        self._wait([sign], pause)
        heard: T = json.loads(self._ask(self._store.get, sign))
        return heard

    def deal(self, sign: str, items: Sequence[T]) -> Iterator[T]:
        """Each of the items, the same in all processes, goes to one of them: the first that is free."""
        while (place := self.add(sign, 1) - 1) < len(items):
            yield items[place]

    def add(self, sign: str, n: int) -> int:
        """Raise a number that the processes share by `n`; returns what it is then."""
        if self._store is not None:
            return int(self._ask(self._store.add, sign, n))
        self._counts[sign] = self._counts.get(sign, 0) + n
        return self._counts[sign]

    def join(self, sign: str, pause: Pause) -> None:
        """The main process waits until all others have come here, too; these go on at once."""
        if self._store is not None:
            self._ask(self._store.set, f"{sign}/{self.rank}", "")
            if self.main:
                self._wait([f"{sign}/{other}" for other in range(self.world)], pause)

    def _wait(self, signs: list[str], pause: Pause) -> None:
        assert self._store is not None
        while not self._ask(self._store.check, signs):
            pause()
            time.sleep(POLL_SECONDS)

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except RuntimeError as error:  # torch's errors of the network and of the store
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{self.item}: process {self.rank} of {self.world} has lost the others ({reason}); progress is kept, "
                "run it again"
            ) from None


def open_store(item: str) -> "Store":
    """The launcher's store, with keys of `item` alone. UserError: there is none."""
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://"))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{item}: WORLD_SIZE is {world()}, but the processes cannot meet "
            f"({str(error).partition(chr(10))[0]}); start them with torchrun or accelerate launch"
        ) from None
    return PrefixStore(f"framefold/{item}", store)


class SharedProgress:
    """Counts what all processes do; the main one shows it."""

    def __init__(self, processes: Processes, title: str, total: int, unit: str, start: int):
        self.processes, self.start = processes, start
        self.progress = Progress(title, total, unit, start=start) if processes.main else None
        self.shown = {"processes": str(processes.world)} if processes.world > 1 else {}

    def add(self, n: int) -> None:
        """`n` more are done by this process; 0: look at the others."""
        done = self.start + self.processes.add("done", n)
        if self.progress is not None:
            self.progress.add(done - self.progress.count, self.shown)

    def close(self) -> None:
        if self.progress is not None:
            self.add(0)
            self.progress.close(**self.shown)
