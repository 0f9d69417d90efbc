"""Progress as plain lines, at most one every few seconds: readable in a terminal, a log file and a DVC transcript.

What a stage achieved is also appended to logs/rates.jsonl, an untracked file: outputs must not depend on the clock.
"""

import contextlib
import json
import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)

RATES = Path("logs/rates.jsonl")  # below the project's root


class Progress:
    """Counts `unit`s out of `total` (None: unknown) and logs rate and time left.

    >>> progress = Progress("extract labeled", total=1600, unit="videos")
    >>> progress.add(32, {"loss": "0.41"}, also={"frames": 180})
    """

    def __init__(self, title: str, total: int | None, unit: str, every_seconds: float = 5.0, start: int = 0):
        self.title, self.total, self.unit, self.every = title, total, unit, every_seconds
        self.count, self.start_count = start, start
        self.also: dict[str, int] = {}  # other units, counted since the start of this process
        self.started = self.last = time.monotonic()

    def add(self, n: int, shown: dict[str, str] | None = None, also: dict[str, int] | None = None) -> None:
        """`n` more; `also`: more of other units; `shown`: names and values for the line."""
        self.count += n
        for unit, more in (also or {}).items():
            self.also[unit] = self.also.get(unit, 0) + more
        now = time.monotonic()
        if now - self.last >= self.every:
            self.last = now
            log.info(self.line(now, shown or {}))

    def close(self, **shown: str) -> None:
        """The last line, and an entry in logs/rates.jsonl."""
        now = time.monotonic()
        log.info(self.line(now, shown))
        append_rates(self.title, now - self.started, {self.unit: self.count - self.start_count, **self.also}, shown)

    def line(self, now: float, shown: dict[str, str]) -> str:
        seconds = max(now - self.started, 1e-9)
        rate = (self.count - self.start_count) / seconds
        parts = [f"{self.title}: {self.count}" + (f"/{self.total}" if self.total is not None else "") + f" {self.unit}"]
        parts += [f"{name} {value}" for name, value in shown.items()] + [f"{rate:.0f} {self.unit}/s"]
        parts += [f"{count / seconds:.0f} {unit}/s" for unit, count in self.also.items()]
        if self.total is not None and rate > 0:
            parts.append(f"eta {max(0, self.total - self.count) / rate:.0f} s")
        return "  ".join(parts)


def append_rates(title: str, seconds: float, counts: dict[str, int], shown: dict[str, str]) -> None:
    """One line of JSON: what was done, how fast, and the peak memory of this process so far."""
    entry = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "what": title,
        "seconds": round(seconds, 3),
        "counts": counts,
        "per_second": {unit: round(count / max(seconds, 1e-9), 1) for unit, count in counts.items()},
        "peak_mib": peak_memory() >> 20,
        "rank": int(os.environ.get("RANK", "0")),
        **shown,
    }
    path = Path(os.environ.get("DVC_ROOT", ".")) / RATES
    with contextlib.suppress(OSError):  # a log that can't be written is no reason to lose the work
        path.parent.mkdir(exist_ok=True)
        with path.open("a", encoding="utf-8") as file:  # one write: lines of processes side by side stay whole
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    import resource

    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the peak of the process that started this one
        (line,) = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # KiB on Linux and BSD
