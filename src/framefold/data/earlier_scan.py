"""What need not be read again: files that are certainly older than the scan that an earlier manifest came from.

A manifest's time of modification is when its scan began, by the clock of its file system, in whole seconds: one that
was copied or checked out has another time, and is not believed. Every change of a file moves its mtime or its ctime,
also a copy that keeps its dates; a folder that was moved into place shows it by a ctime that is not its mtime.
"""

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from framefold.data.manifest import Found, SplitManifest

SECOND = 1_000_000_000


def clock_of(new_file: IO[Any]) -> int:
    """Now in nanoseconds, by the clock of the file system that the just created file is on."""
    return os.fstat(new_file.fileno()).st_mtime_ns


def set_scan_time(manifest: Path, began: int) -> None:
    """Date a finished manifest back to when its scan began: what changes during a scan is read by the next one."""
    whole = began - began % SECOND
    os.utime(manifest, ns=(whole, whole))


def scan_time(manifest: Path, now: int) -> int | None:
    """When the scan of a manifest began; None when its time is not of our making, or lies ahead (a clock put back)."""
    stamp = manifest.stat().st_mtime_ns
    return stamp if stamp % SECOND == 0 and stamp <= now else None


def last_change(stat: os.stat_result) -> int:
    return max(stat.st_mtime_ns, stat.st_ctime_ns)


class EarlierScan:
    """One split of an earlier manifest, and when its scan began."""

    def __init__(self, manifest: "SplitManifest", began: int):
        self.manifest, self.began = manifest, began

    def within(self, folder: Path) -> Self | None:
        """Itself, or None when `folder` was moved or linked to its place since: then the times in it say nothing."""
        if folder.is_symlink() and last_change(folder.lstat()) >= self.began:
            return None
        stat = folder.stat()
        return None if stat.st_ctime_ns >= self.began and stat.st_ctime_ns != stat.st_mtime_ns else self

    def find_zip(self, video_id: str, file: "os.DirEntry[str]") -> "Found | None":
        """What is known of a video whose zip is as it was; an unreadable one gets another chance."""
        stat, found = file.stat(follow_symlinks=False), self.manifest.find_facts(video_id)
        if found is None or found[0] != stat.st_size or found[1] == 0 or last_change(stat) >= self.began:
            return None
        return None if file.is_symlink() else found

    def has_archive(self, path: Path) -> bool:
        """Whether all that is in an archive is known."""
        return max(last_change(path.stat()), last_change(path.lstat())) < self.began
