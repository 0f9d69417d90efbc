"""`framefold manifest` and a no-op `dvc repro` on a large root of frame zips: part of `benchmarks.million`.

The project is one that the streaming stages have run in; what they did not make is filled with small files, since a
no-op looks at names, sizes and times alone. `dvc commit` then declares all of it done.
"""

import filecmp
import logging
import re
import shutil
import statistics
import time
import zlib
from pathlib import Path

from benchmarks.million_data import SPLITS, ZipWriter, video_id
from benchmarks.million_project import Project
from framefold.data.manifest import NAME, zip_path

log = logging.getLogger(__name__)

GROWTH = 100  # one new zip for so many old ones
CHANGED = 10  # zips that are written anew
REPEATS = 3
# What all stages write and read, one a line, as DVC resolves it
LIST_FILES = """
from dvc.repo import Repo
print(*sorted({file.fs_path for stage in Repo().index.stages for file in [*stage.outs, *stage.deps]}), sep="\\n")
"""


def write_frame_zips(root: Path, split: str, rows: range, frame: bytes = b"frame") -> None:
    """One zip a video with one member that no manifest would call unusable; a few hundred bytes, hence one block."""
    for row in rows:
        name = video_id(split, row)
        path, data, archive = zip_path(root, split, name), frame + name.encode(), ZipWriter()
        if row < 1000:  # ids are dense: the first thousand have all last three digits
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(archive.member(b"0000.jpg", data, zlib.crc32(data)) + archive.end())


def replace_root(project: Project, root: Path, sizes: dict[str, int]) -> float:
    """Frame zips in the place of feature archives, and their manifest; returns the seconds that it took to write."""
    shutil.rmtree(root / "zip_feats")
    (root / NAME).unlink()
    for split in SPLITS:
        write_frame_zips(root, split, range(sizes[split]))
    return timed_manifest(project, root)


def timed_manifest(project: Project, root: Path) -> float:
    start = time.perf_counter()
    printed = project.framefold("manifest", str(root))
    seconds = time.perf_counter() - start
    log.info("manifest: %.1f s\n%s", seconds, printed.rstrip())
    return seconds


def refresh_manifest(project: Project, root: Path, unlabeled: int) -> tuple[float, float]:
    """Seconds to refresh the manifest of a grown root, and to scan all of that root right after.

    AssertionError: the two say different things.
    """
    write_frame_zips(root, "unlabeled", range(unlabeled, unlabeled + unlabeled // GROWTH))
    write_frame_zips(root, "unlabeled", range(CHANGED), b"another frame")
    seconds = timed_manifest(project, root)
    refreshed = root / "refreshed.manifest"
    (root / NAME).rename(refreshed)
    rescan = timed_manifest(project, root)
    assert filecmp.cmp(refreshed, root / NAME, shallow=False), "the refreshed manifest differs from a full scan's"
    return seconds, rescan


# DVC


def commit_everything(project: Project) -> None:
    """dvc.lock as if every stage had run."""
    project.run("git", "init", "--quiet", "--initial-branch=main")
    for name in project.run("python", "-c", LIST_FILES).split():
        fill(Path(name))
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "generated")
    project.run("dvc", "commit", "--force")


def fill(path: Path) -> None:
    """Where nothing stands: another encoder's features, copied from the first's, or a file of a few bytes."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    features = path.parent.parent / "small" / path.name
    if path.parts[-3] == "features" and features.is_dir():
        shutil.copytree(features, path)
        return
    file = path if path.suffix else path / "model.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_text("{}\n", encoding="utf-8")


def noop_repro(project: Project) -> tuple[float, float]:
    """Seconds of the first `dvc repro` that has nothing to do, and the median of those after it."""
    first, *others = (timed_repro(project) for _ in range(1 + REPEATS))
    log.info("dvc repro: first %.1f s, then %s", first, ", ".join(f"{seconds:.1f} s" for seconds in others))
    return first, statistics.median(others)


def timed_repro(project: Project) -> float:
    start = time.perf_counter()
    printed = project.run("dvc", "repro")
    seconds = time.perf_counter() - start
    assert "up to date" in printed, printed
    assert not re.search(r"^Running stage", printed, re.MULTILINE), printed
    return seconds
