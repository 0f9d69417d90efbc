"""A full disk ends a stage in one line, and it goes on once there is room.

.venv/bin/python -m pytest -m medium tests/test_disk_full.py

The project lies on a small tmpfs of a mount namespace of its own; where that may not be made, these tests are skipped.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Project, SmokeRun, environment_of
from kill import content, half_written, left_behind, remove, stages_of

pytestmark = pytest.mark.medium

NAMESPACE = ["unshare", "--map-root-user", "--mount"]
# $1: where the disk is mounted, $2: the project, $3: where to put what happened, $4: KiB of room, for one run each;
# then the stage's command. A last run has room in plenty.
SCRIPT = """
set -eu
disk=$1 project=$2 logs=$3 rooms=$4; shift 4
mount -t tmpfs -o size=100m small "$disk"
cp -a "$project"/. "$disk"
cd "$disk"
for room in $rooms; do
    available=$(df --output=avail -k . | tail -n 1)
    head -c $(((available - room) * 1024)) /dev/zero > ballast
    code=0
    "$@" > "$logs/$room.txt" 2>&1 || code=$?
    echo "$room $code"
    rm ballast
    cp -a . "$logs/$room"
done
"$@" > "$logs/plenty.txt" 2>&1
cp -a . "$logs/plenty"
"""
OFTEN, SELDOM = {"FRAMEFOLD_CHECKPOINT_SECONDS": "0"}, {"FRAMEFOLD_CHECKPOINT_SECONDS": "600"}


@dataclass(frozen=True)
class Outcome:
    """What became of a stage on a disk with little room, run after run, and at last with plenty."""

    codes: dict[str, int]  # by KiB of room
    logs: dict[str, str]
    half_written: list[str]
    whole: bool  # the outputs at last are what they should be
    left: list[str]


@pytest.fixture(scope="module", autouse=True)
def namespace() -> None:
    allowed = shutil.which("unshare") and subprocess.run(
        [*NAMESPACE, "mount", "-t", "tmpfs", "-o", "size=1m", "small", "/mnt"], capture_output=True, check=False
    )
    if not allowed or allowed.returncode:
        pytest.skip("a tmpfs in a mount namespace of its own may not be made here")


def run_with_little_room(smoke_run: SmokeRun, tmp_path: Path, kind: str, own: dict[str, str], rooms: str) -> Outcome:
    stage, project = stages_of(smoke_run.project)[kind], smoke_run.project.copy(tmp_path / "project")
    whole = content(project, stage)
    remove(project, stage)
    shutil.rmtree(project.path / ".dvc")
    disk, logs = tmp_path / "disk", tmp_path / "logs"
    disk.mkdir(), logs.mkdir()
    result = subprocess.run(
        [*NAMESPACE, "bash", "-c", SCRIPT, "bash", disk, project.path, logs, rooms, *stage.command],
        env=environment_of(disk) | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    after = {room: Project(logs / room, {}) for room in (*rooms.split(), "plenty")}
    return Outcome(
        {room: int(code) for room, code in map(str.split, result.stdout.splitlines())},
        {room: (logs / f"{room}.txt").read_text(encoding="utf-8") for room in rooms.split()},
        [path for copy in after.values() for path in half_written(copy, stage, whole)],
        content(after["plenty"], stage) == whole,
        left_behind(after["plenty"]),
    )


@pytest.mark.parametrize(
    ("kind", "own", "rooms", "named"),
    [
        ("finetune", OFTEN, "0 600", ".scratch/finetune@single_stream-0: progress cannot be saved"),
        ("finetune", SELDOM, "400", "models/finetune/single_stream/0"),
        ("extract_frames", SELDOM, "0 20", ".shards/small-"),
        ("ingest", SELDOM, "100 300", ".scratch/ingest/"),
    ],
)
def test_a_stage_goes_on_after_a_full_disk(
    smoke_run: SmokeRun, tmp_path: Path, kind: str, own: dict[str, str], rooms: str, named: str
):
    """Each run without room ends in one line that says what to do; the last, with room, ends with the same bytes."""
    outcome = run_with_little_room(smoke_run, tmp_path, kind, own, rooms)
    for room, log in outcome.logs.items():
        assert outcome.codes[room] == 1, log
        last = log.splitlines()[-1]
        assert last.startswith("error: ")
        assert "No space left on device" in last
        assert "free the disk and run again" in last
        assert "Traceback" not in log
    assert named in last
    assert outcome.half_written == []
    assert outcome.whole
    assert outcome.left == []
