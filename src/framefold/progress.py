"""Progress as plain lines, at most one every few seconds: readable in a terminal, a log file and a DVC transcript."""

import logging
import time

log = logging.getLogger(__name__)


class Progress:
    """Counts `unit`s out of `total` (None: unknown) and logs rate and time left.

    >>> progress = Progress("extract labeled", total=1600, unit="videos")
    >>> progress.add(32, loss="0.41")
    """

    def __init__(self, title: str, total: int | None, unit: str, every_seconds: float = 5.0, start: int = 0):
        self.title, self.total, self.unit, self.every = title, total, unit, every_seconds
        self.count, self.start_count = start, start
        self.started = self.last = time.monotonic()

    def add(self, n: int, **shown: str) -> None:
        self.count += n
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            log.info(self.line(now, shown))

    def close(self, **shown: str) -> None:
        log.info(self.line(time.monotonic(), shown))

    def line(self, now: float, shown: dict[str, str]) -> str:
        rate = (self.count - self.start_count) / max(now - self.started, 1e-9)
        parts = [f"{self.title}: {self.count}" + (f"/{self.total}" if self.total is not None else "") + f" {self.unit}"]
        parts += [f"{name} {value}" for name, value in shown.items()] + [f"{rate:.0f} {self.unit}/s"]
        if self.total is not None and rate > 0:
            parts.append(f"eta {max(0, self.total - self.count) / rate:.0f} s")
        return "  ".join(parts)
