"""Tokenize killed anywhere goes on to the same bytes: .venv/bin/python -m pytest tests/test_tokenize_resume.py"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from interruptions import before_call, contents, killed_before, scratch_only_locks, terminate, undisturbed
from test_tokenize import SPECIAL, TOPICS, make_project, write_vocab

from framefold.data import tokenization
from framefold.seals import sealed_in
from stages import tokenize

OUTPUTS = ["models/tokenizer/*", "data/tokens/*", "metrics/tokenize.json"]
UNITS = Path(".scratch/tokenize")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 labelled, 300 unlabelled and 40 test samples, read in batches of 16."""
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tokenize, "BATCH_SIZE", 16)
    monkeypatch.setattr(tokenization, "BATCH_SIZE", 16)
    for name in ("DVC_STAGE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def reference() -> dict[str, bytes]:
    return {}


@pytest.fixture
def whole(project: Path, reference: dict[str, bytes]) -> dict[str, bytes]:
    """What an undisturbed run writes (every `project` is the same); nothing of it is left."""
    if not reference:
        reference.update(undisturbed(tokenize.main, OUTPUTS))
    assert len(reference) == 7
    return reference


def killed(target: str, number: int) -> None:
    killed_before(tokenize.main, target, number)


def units() -> list[str]:
    """Those that are finished."""
    return sorted(path.name for path in sealed_in(UNITS))


@pytest.mark.parametrize(
    ("target", "number", "kept"),
    [
        ("framefold.data.tokenizer._characters", 1, []),
        ("framefold.data.tokenizer.Tokenizer.save", 1, []),
        ("framefold.data.tokenization._encode", 2, ["tokenizer"]),
        ("framefold.data.tokenization._encode", 30, ["labeled", "tokenizer"]),
        ("framefold.seals.content_digest", 4, ["labeled", "tokenizer", "unlabeled"]),
        ("stages.tokenize.link_or_copy", 3, ["labeled", "test", "tokenizer", "unlabeled"]),
        ("framefold.storage.os.replace", 17, ["labeled", "test", "tokenizer", "unlabeled"]),  # one of two is published
        ("stages.tokenize.Scratch.finish", 1, ["labeled", "test", "tokenizer", "unlabeled"]),
    ],
)
def test_killed_anywhere_ends_with_the_same_bytes(
    whole: dict[str, bytes], target: str, number: int, kept: list[str]
) -> None:
    """And what was finished by then is kept."""
    killed(target, number)
    assert units() == kept
    tokenize.main()
    assert contents(OUTPUTS) == whole
    assert scratch_only_locks()


def test_what_is_finished_is_not_done_again(whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    killed("framefold.seals.content_digest", 4)

    def no_more(*arguments: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("framefold.data.tokenizer.train_vocabulary", no_more)
    calls: list[Path] = []
    write = tokenize.write_tokens
    monkeypatch.setattr(tokenize, "write_tokens", lambda *args: (calls.append(args[2]), write(*args))[1])
    tokenize.main()
    assert [path.name for path in calls] == ["test.arrow"]
    assert contents(OUTPUTS) == whole


@pytest.mark.parametrize(
    "name", ["tokenizer/tokenizer.json", "tokenizer/vocab.txt", "labeled/labeled.arrow", "labeled/counts.json"]
)
@pytest.mark.parametrize("cut", [True, False])
def test_damaged_progress_is_dropped_with_a_warning(
    whole: dict[str, bytes], name: str, cut: bool, caplog: pytest.LogCaptureFixture
) -> None:
    killed("stages.tokenize.link_or_copy", 1)
    content = bytearray((UNITS / name).read_bytes())
    content[len(content) // 2] ^= 1
    (UNITS / name).write_bytes(content[:-10] if cut else content)
    tokenize.main()
    assert f"{(UNITS / name).parent}: damaged, so it is dropped" in caplog.text
    assert contents(OUTPUTS) == whole


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("framefold.data.tokenizer._characters", 1),
        ("framefold.data.tokenizer.trainers.WordPieceTrainer", 1),
        ("framefold.data.tokenization._encode", 30),
        ("stages.tokenize.link_or_copy", 1),
    ],
)
def test_sigterm_stops_soon_and_keeps_progress(whole: dict[str, bytes], target: str, number: int) -> None:
    """Exit code 143 from wherever it comes, also out of the library that trains; nothing is published."""
    with pytest.MonkeyPatch.context() as patch:
        before_call(patch, target, number, terminate)
        with pytest.raises(SystemExit) as stop:
            tokenize.main()
    assert stop.value.code == 128 + signal.SIGTERM
    assert contents(OUTPUTS) == {}
    if "_encode" in target:
        assert units() == ["labeled", "tokenizer"]
    tokenize.main()
    assert contents(OUTPUTS) == whole


def test_an_orphan_publishes_nothing(whole: dict[str, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def lose() -> None:
            patch.setattr("framefold.parent.ParentWatch.gone", lambda self: True)

        before_call(patch, "stages.tokenize.link_or_copy", 4, lose)
        with pytest.raises(SystemExit, match="1"):
            tokenize.main()
    assert "has gone; progress is kept" in capsys.readouterr().err
    assert contents(OUTPUTS) == {}


@pytest.mark.parametrize("changed", [None, "vocab.txt", "tokenizer_config.json"])
def test_another_vocabulary_file_drops_what_was_encoded(
    project: Path, changed: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Its content counts, and that of the settings beside it."""
    make_project(project, vocab=str(write_vocab(project, [*SPECIAL, *sorted(set(TOPICS))])), max_unknown=1.0)
    killed("framefold.data.tokenization._encode", 30)
    if changed == "vocab.txt":
        write_vocab(project, [*SPECIAL, *sorted(set(TOPICS)), "好"])
    elif changed:
        (project / changed).write_text('{"do_lower_case": false}')
    with caplog.at_level("INFO"):
        tokenize.main()
    assert ("unfinished work dropped, made with other inputs" in caplog.text) is (changed is not None)


SCRIPT = """
import os, time
from framefold.seals import sealed_in
from stages import tokenize
write = tokenize.write_tokens
tokenize.write_tokens = lambda *arguments: (time.sleep(float(os.environ["SLEEP"])), write(*arguments))[1]
tokenize.main()
"""


def start(sleep: float) -> subprocess.Popen[str]:
    Path("run.py").write_text(SCRIPT)
    own = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "SLEEP": str(sleep)}
    return subprocess.Popen([sys.executable, "run.py"], env=os.environ | own, stdout=subprocess.PIPE, text=True)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


@pytest.mark.medium
def test_a_sigkill_costs_no_bytes(project: Path) -> None:
    """Within the second split, with leftovers that no `finally` cleaned up."""
    tokenize.BATCH_SIZE = tokenization.BATCH_SIZE = 1024  # as in the other process; the fixture puts them back
    tokenize.main()
    expected = contents(OUTPUTS)
    for name in expected:
        Path(name).unlink()
    process = start(sleep=1.0)
    wait_for((UNITS / "labeled").is_dir)
    wait_for(lambda: list(UNITS.glob(".unlabeled.*.aside")))
    process.kill()
    process.wait()
    assert contents(OUTPUTS) == {}
    output = start(sleep=0.0).communicate(timeout=120)[0]
    assert "tokenize labeled" not in output
    assert contents(OUTPUTS) == expected
    assert scratch_only_locks()
