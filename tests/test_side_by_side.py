"""What may run side by side: .venv/bin/python -m pytest tests/test_side_by_side.py

That two stages at a time give the same dvc.lock as one is tested in test_dvc.py.
"""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from framefold.side_by_side import deal, joined, read_graph, waves, with_descendants

ROOT = Path(__file__).resolve().parents[1]
DOT = """strict digraph {
"ingest";
"split";
"finetune@a-0";
"finetune@a-1";
"report";
"ingest" -> "split";
"split" -> "finetune@a-0";
"split" -> "finetune@a-1";
"finetune@a-0" -> "report";
"finetune@a-1" -> "report";
}
"""
GRAPH = read_graph(DOT)
FINETUNE = ["finetune@a-0", "finetune@a-1"]


def test_the_graph_holds_what_each_stage_depends_on():
    assert {
        "ingest": set(),
        "split": {"ingest"},
        "finetune@a-0": {"split"},
        "finetune@a-1": {"split"},
        "report": set(FINETUNE),
    } == GRAPH


def test_what_depends_on_a_changed_stage_may_have_to_run():
    assert with_descendants(GRAPH, {"finetune@a-1"}) == {"finetune@a-1", "report"}


def test_a_change_outside_the_pipeline_runs_nothing():
    assert with_descendants(GRAPH, {"other/dvc.yaml:train"}) == set()


def test_a_stage_comes_after_all_that_it_depends_on():
    assert waves(GRAPH, set(GRAPH)) == [["ingest"], ["split"], FINETUNE, ["report"]]


def test_stages_that_are_up_to_date_hold_nothing_up():
    assert waves(GRAPH, {"finetune@a-1", "report"}) == [["finetune@a-1"], ["report"]]


def test_single_stages_in_a_row_share_a_run():
    assert joined(waves(GRAPH, set(GRAPH))) == [[["ingest", "split"]], [[FINETUNE[0]], [FINETUNE[1]]], [["report"]]]


def test_every_stage_is_dealt_once():
    assert deal([["a"], ["b"], ["c"], ["d"], ["e"]], 2) == [["a", "c", "e"], ["b", "d"]]


def test_no_empty_hand_is_dealt():
    """A run of DVC without a stage would mean all of them."""
    assert deal([["a"]], 4) == [["a"]]


# The command, with a `dvc` that notes how it was called


FAKE_DVC = f"""#!{sys.executable}
import json, os, pathlib, sys, time
arguments = sys.argv[1:]
names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
with open("calls", "a") as file:
    print(json.dumps([arguments, {{name: os.environ.get(name) for name in names}}]), file=file)
arguments = arguments[1:]
if arguments[0] == "dag":
    print(pathlib.Path("dot").read_text())
if arguments[0] == "status":
    print(json.dumps({{name: [] for name in pathlib.Path("changed").read_text().split()}}))
if pathlib.Path("failing").exists() and pathlib.Path("failing").read_text() in arguments:
    sys.exit(3)
if pathlib.Path("slow").exists() and arguments[0] == "repro":
    pathlib.Path(f"pid-{{os.getpid()}}").touch()
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "dvc"
    fake.write_text(FAKE_DVC, encoding="utf-8")
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "dot").write_text(DOT, encoding="utf-8")
    (tmp_path / "changed").write_text("ingest", encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def start(folder: Path, *arguments: str, path: str | None = None, stdout: int | None = None) -> subprocess.Popen:
    own = {"PATH": path or os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])}
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | own
    command = [sys.executable, "-c", "from framefold.cli import main; main()", "repro", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)


def calls(folder: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Stages and environment of every `dvc repro`."""
    found = [json.loads(line) for line in (folder / "calls").read_text(encoding="utf-8").splitlines()]
    runs = [(arguments[2:], own) for arguments, own in found if arguments[:2] == ["--wait-for-lock", "repro"]]
    return [(arguments[1:], own) if arguments[:1] == ["--single-item"] else (arguments, own) for arguments, own in runs]


def test_side_by_side_runs_share_the_cores(folder: Path):
    assert start(folder, "--jobs", "2").wait() == 0
    threads = {tuple(stages): own["OMP_NUM_THREADS"] for stages, own in calls(folder)}
    share = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert threads == {
        ("ingest", "split"): None,
        (FINETUNE[0],): share,
        (FINETUNE[1],): share,
        ("report",): None,
        (): None,
    }


def test_each_run_has_a_gpu_of_its_own(folder: Path):
    assert start(folder, "--gpus", "2,5").wait() == 0
    gpus = {tuple(stages): own["CUDA_VISIBLE_DEVICES"] for stages, own in calls(folder)}
    assert [gpus[stage,] for stage in FINETUNE] == ["2", "5"]


def test_nothing_changed_is_one_call_of_dvc(folder: Path):
    (folder / "changed").write_text("", encoding="utf-8")
    assert start(folder, "--jobs", "2").wait() == 0
    assert [stages for stages, _ in calls(folder)] == [[]]


def test_after_a_failed_stage_nothing_more_is_started(folder: Path):
    (folder / "failing").write_text(FINETUNE[0], encoding="utf-8")
    process = start(folder, "--jobs", "2")
    assert "a stage failed" in process.communicate()[1]
    assert process.returncode == 1
    assert sorted(stages for stages, _ in calls(folder)) == [[FINETUNE[0]], [FINETUNE[1]], ["ingest", "split"]]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_its_runs_end_with_it(folder: Path, number: signal.Signals):
    (folder / "changed").write_text(" ".join(FINETUNE), encoding="utf-8")
    (folder / "slow").touch()
    process = start(folder, "--jobs", "2")
    deadline = time.monotonic() + 30
    while len(pids := list(folder.glob("pid-*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate(timeout=20)[1] == ""
    assert process.returncode == 128 + number
    assert not any(psutil.pid_exists(int(path.name.removeprefix("pid-"))) for path in pids)


def test_a_torn_lock_is_mended_before_dvc_reads_it(folder: Path):
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages:\n  ingest:\n    cm", encoding="utf-8")
    assert start(folder).wait() == 0
    assert not (folder / "dvc.lock").exists()


def test_params_that_contradict_each_other_start_nothing(folder: Path):
    """A stage would tell when its turn has come, perhaps after hours."""
    params = (folder / "params.yaml").read_text(encoding="utf-8").replace("  last: 2", "  last: 3")
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    process = start(folder)
    told = process.communicate()[1]
    assert told.startswith("error: params.yaml: average_weights.last is 3")
    assert told.count("\n") == 1
    assert process.returncode == 1
    assert not (folder / "calls").exists()


def test_values_without_effect_are_told_and_the_run_goes_on(folder: Path):
    params = (
        (folder / "params.yaml")
        .read_text(encoding="utf-8")
        .replace("queue: 0", "queue: 64")
        .replace("itc: 0.3", "itc: 0.0")
    )
    (folder / "params.yaml").write_text(params, encoding="utf-8")
    process = start(folder, stdout=subprocess.PIPE)
    assert "note: params.yaml: pretrain.contrast.queue has no effect here\n" in process.communicate()[0]
    assert process.returncode == 0
    assert calls(folder)


def test_without_dvc_it_says_so(folder: Path):
    (folder / "bin" / "dvc").unlink()
    process = start(folder, path=str(folder / "bin"))
    assert process.communicate()[1].startswith("error: repro: no `dvc` in PATH")
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (["--jobs", "0"], "not a whole number of at least 1"),
        (["--jobs", "two"], "not a whole number of at least 1"),
        (["--gpus", "0,"], "not a list of different GPUs"),
        (["--gpus", "0,0"], "not a list of different GPUs"),
        (["--gpus", "0,1", "--jobs", "2"], "not allowed with"),
    ],
)
def test_wrong_slots_are_refused(folder: Path, wrong: list[str], why: str):
    process = start(folder, *wrong)
    assert why in process.communicate()[1]
    assert process.returncode == 2
