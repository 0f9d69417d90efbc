"""Ingest killed anywhere goes on to the same bytes: .venv/bin/python -m pytest tests/test_ingest_resume.py"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import psutil
import pytest
import yaml
from interruptions import Killed, before_call, contents, kill, killed_before, scratch_only_locks, terminate, undisturbed
from mini_root import MiniRoot, jpeg, words

from framefold.data import frame_hashes
from framefold.scratch import Scratch
from framefold.storage import aside_of
from stages import ingest

OUTPUTS = ["data/samples/*", "data/rejected.parquet", "metrics/ingest.json"]
UNITS = Path(".scratch/ingest")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def mini(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MiniRoot:
    """33 videos in 6 units of frame hashes, with duplicates, rejects, and a video without frames."""
    monkeypatch.setattr(frame_hashes, "CHUNK", 3)
    monkeypatch.setattr(frame_hashes, "UNIT_CHUNKS", 2)
    monkeypatch.setenv("FRAMEFOLD_WORKERS", "1")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    mini = MiniRoot(tmp_path, monkeypatch).fill()
    mini.add("labeled", title=words(999))
    mini.add("unlabeled", title=words(999), frames=[jpeg(1)])
    mini.add("test", title="", frames=[])
    mini.add("test", title=7)
    mini.add("unlabeled", id=mini.records["test"][0]["id"])
    return mini.finish()


@pytest.fixture(scope="module")
def reference() -> dict[str, bytes]:
    return {}


@pytest.fixture
def whole(mini: MiniRoot, reference: dict[str, bytes]) -> dict[str, bytes]:
    """What an undisturbed run writes (every `mini` is the same); nothing of it is left."""
    if not reference:
        reference.update(undisturbed(ingest.main, OUTPUTS))
    assert len(reference) == 6
    return reference


def killed(target: str, number: int) -> None:
    killed_before(ingest.main, target, number)


def counted(target: str) -> int:
    """Run to the end; returns the number of calls of `target`."""
    calls: list[None] = []
    with pytest.MonkeyPatch.context() as patch:
        original = resolve_name(target)
        patch.setattr(target, lambda *arguments, **named: (calls.append(None), original(*arguments, **named))[1])
        ingest.main()
    return len(calls)


POINTS = [
    ("framefold.data.intake.refusal", 3),  # within test, labelled, unlabelled
    ("framefold.data.intake.refusal", 20),
    ("framefold.data.intake.refusal", 31),
    ("framefold.seals.content_digest", 2),  # all of a split is written but its seal
    ("framefold.data.intake.first_of_id", 1),
    ("framefold.data.frame_hashes.hash_videos", 1),
    ("framefold.data.frame_hashes.hash_videos", 6),
    ("framefold.data.frame_hashes.np.save", 4),  # between the two files of a unit
    ("framefold.data.duplicates.join_by_text", 1),
    ("framefold.data.ingestion.write_samples", 3),
    ("framefold.storage.shutil.rmtree", 9),
    ("stages.ingest.write_json", 1),  # samples and rejects are published, the metrics are not
    ("stages.ingest.Scratch.finish", 1),
]


@pytest.mark.parametrize(("target", "number"), POINTS, ids=[f"{target}-{number}" for target, number in POINTS])
def test_killed_anywhere_ends_with_the_same_bytes(whole: dict[str, bytes], target: str, number: int) -> None:
    killed(target, number)
    ingest.main()
    assert contents(OUTPUTS) == whole
    assert scratch_only_locks()


def test_killed_at_every_turn_ends_with_the_same_bytes(whole: dict[str, bytes]) -> None:
    """Each run gets a little further than the one before."""
    for target, number in POINTS[1:-1]:
        with pytest.MonkeyPatch.context() as patch:
            before_call(patch, target, number, kill)
            try:
                ingest.main()
            except Killed:
                continue
    ingest.main()
    assert contents(OUTPUTS) == whole


def test_what_is_finished_is_not_done_again(whole: dict[str, bytes]) -> None:
    """A kill costs the split at hand, or the unit of hashes at hand."""
    killed("framefold.data.intake.refusal", 31)  # in the third split
    assert sorted(path.name for path in UNITS.iterdir() if path.is_dir()) == ["labeled", "test"]
    with pytest.MonkeyPatch.context() as patch:
        before_call(patch, "framefold.data.frame_hashes.hash_videos", 6, kill)  # in the third unit
        before_call(patch, "framefold.data.intake.read_split", 2, lambda: pytest.fail("read again"))
        with pytest.raises(Killed):
            ingest.main()
    assert counted("framefold.data.frame_hashes.hash_videos") == 11 - 4
    assert contents(OUTPUTS) == whole


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("unlabeled/draft.parquet", damage_flip),
        ("unlabeled/sets", damage_cut),
        ("test/ids", Path.unlink),
        ("labeled/counts.json", damage_flip),
        ("hashes-00001/hashes.npy", damage_flip),
        ("hashes-00005/usable.npy", damage_cut),
        ("test.seal", damage_cut),
    ],
)
def test_damaged_progress_is_dropped_with_a_warning(
    whole: dict[str, bytes], name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever became of a file in scratch, it costs the progress of its unit alone, and is never used."""
    killed("framefold.data.duplicates.join_by_text", 1)
    damage(UNITS / name)
    ingest.main()
    assert f"{UNITS / Path(name).parts[0].removesuffix('.seal')}: damaged, so it is dropped" in caplog.text
    assert contents(OUTPUTS) == whole


def test_what_has_no_seal_is_not_finished(whole: dict[str, bytes]) -> None:
    killed("framefold.data.duplicates.join_by_text", 1)
    (UNITS / "test.seal").unlink()
    (UNITS / "test/ids").write_bytes(b"half")
    assert counted("framefold.data.intake.read_split") == 1
    assert contents(OUTPUTS) == whole


def test_outputs_do_not_depend_on_workers_before_and_after(
    whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun with one process, finished with two."""
    killed("framefold.data.frame_hashes.hash_videos", 4)
    monkeypatch.setattr(frame_hashes, "POOL_FROM", 1)
    monkeypatch.setenv("FRAMEFOLD_WORKERS", "2")
    ingest.main()
    assert contents(OUTPUTS) == whole


@pytest.mark.parametrize(("key", "kept"), [("max_rejected", True), ("max_text", False)])
def test_other_params_keep_what_does_not_depend_on_them(mini: MiniRoot, key: str, kept: bool) -> None:
    """After too many rejects, raising the limit does not read everything again; another text length does."""
    killed("framefold.data.frame_hashes.hash_videos", 11)
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["ingest"][key] *= 2
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    assert counted("framefold.data.intake.read_split") == (0 if kept else 3)


@pytest.mark.parametrize(
    ("target", "number", "unfinished"),
    [
        ("framefold.data.intake.refusal", 10, "labeled"),
        ("framefold.data.frame_hashes.hash_videos", 5, "hashes-00002"),
        ("framefold.data.duplicates.join_by_frames", 1, "samples"),
        ("framefold.data.duplicates.join_by_text", 1, "samples"),
        ("framefold.data.duplicates.join_by_both", 1, "samples"),
        ("framefold.data.ingestion.write_samples", 3, "samples"),
    ],
)
def test_sigterm_stops_soon_and_keeps_progress(
    whole: dict[str, bytes], target: str, number: int, unfinished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 143, the unit at hand not finished, nothing published; the next run goes on."""
    monkeypatch.setattr("framefold.data.intake.GUARDED", 1)
    with pytest.MonkeyPatch.context() as patch:
        if unfinished == "samples" and "join" in target:
            patch.setattr("framefold.data.ingestion.write_samples", lambda *arguments: pytest.fail("went on"))
        before_call(patch, target, number, terminate)
        with pytest.raises(SystemExit) as stop:
            ingest.main()
    assert stop.value.code == 128 + signal.SIGTERM
    assert contents(["data/samples/*", "metrics/*"]) == {}
    assert (UNITS / "test").is_dir()
    assert not (UNITS / unfinished).exists()
    ingest.main()
    assert contents(OUTPUTS) == whole


def test_an_orphan_publishes_nothing(
    mini: MiniRoot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its dvc goes while samples are written: the guard before publishing sees it."""
    with pytest.MonkeyPatch.context() as patch:

        def lose() -> None:
            patch.setattr("framefold.parent.ParentWatch.gone", lambda self: True)

        before_call(patch, "framefold.data.ingestion.write_samples", 3, lose)
        with pytest.raises(SystemExit, match="1"):
            ingest.main()
    assert "has gone; progress is kept" in capsys.readouterr().err
    assert contents(["data/samples/*", "metrics/*"]) == {}


def test_leftovers_of_a_killed_process_go(whole: dict[str, bytes]) -> None:
    """SIGKILL runs no `finally`: half-written files of a process that has gone are deleted, also beside the outputs."""
    killed("framefold.data.frame_hashes.hash_videos", 1)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    for path in (UNITS / "hashes-00000", Path("data/samples"), Path("data/rejected.parquet")):
        aside = aside_of(path).with_name(aside_of(path).name.replace(f"-{os.getpid()}.", f"-{gone.pid}."))
        aside.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(b"half") if path.suffix else aside.mkdir()
    ingest.main()
    assert contents(OUTPUTS) == whole
    assert scratch_only_locks()
    assert not list(Path("data").glob(".*.aside"))


# One real SIGKILL, with worker processes

SCRIPT = """
import os, time
from framefold.data import frame_hashes
from stages import ingest
frame_hashes.CHUNK, frame_hashes.UNIT_CHUNKS, frame_hashes.POOL_FROM = 3, 2, 1
if __name__ == "__main__":
    save = frame_hashes.save_hashes
    frame_hashes.save_hashes = lambda *arguments: (save(*arguments), time.sleep(float(os.environ["SLEEP"])))
    ingest.main()
"""


def start(sleep: float) -> subprocess.Popen[str]:
    """Ingest with two workers in a session of its own; `sleep` seconds after each unit of hashes."""
    Path("run.py").write_text(SCRIPT)
    own = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "FRAMEFOLD_WORKERS": "2", "SLEEP": str(sleep)}
    return subprocess.Popen(
        [sys.executable, "run.py"], env=os.environ | own, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


@pytest.mark.medium
def test_a_sigkill_while_hashing_leaves_no_worker_and_costs_no_bytes(whole: dict[str, bytes]) -> None:
    process = start(sleep=1.0)
    wait_for((UNITS / "hashes-00001").is_dir)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(workers) >= 2
    wait_for(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers), 10)
    assert contents(["data/samples/*", "metrics/*"]) == {}
    output = start(sleep=0.0).communicate(timeout=120)[0]
    assert "ingest unlabeled: 6 records, read before an interruption" in output
    assert contents(OUTPUTS) == whole


@pytest.mark.medium
def test_a_sigterm_to_the_whole_group_is_no_crash(mini: MiniRoot) -> None:
    """As a batch system sends it: workers end at once, the stage ends by itself, with 143."""
    process = start(sleep=0.2)
    wait_for((UNITS / "hashes-00001").is_dir)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(30) == 143


def test_the_lock_is_held(mini: MiniRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second ingest could not begin while the first is at work."""
    held: list[bool] = []

    def look() -> None:
        other = Scratch("ingest", {})
        other._lock = other._lock_path.open("a+", encoding="utf-8")
        held.append(not other._try_lock())

    before_call(monkeypatch, "framefold.data.ingestion.write_samples", 2, look)
    ingest.main()
    assert held == [True]
