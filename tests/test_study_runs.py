"""What of a study is run, and what is kept of it: .venv/bin/python -m pytest tests/test_study_runs.py

The commands are replaced by ones that hand out prepared outcomes (small_study.py); everything else is real.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from small_study import ACCURACY, ROOT, RUNS, RUNS_OF_SEED_0, SmallStudy, make, options, videos, write_outcome

from framefold.errors import UserError
from framefold.study.command import run, show
from framefold.study.records import FINAL_COLUMNS, Made, Records
from framefold.study.runs import Budget, Place, expected_seconds, planned, work_off

FIRST = ["dataset", "arm", "seed", "split", "score", "lv1_micro", "lv1_macro", "lv2_micro", "lv2_macro"]
SIGNALLED = """
import sys
from pathlib import Path
from small_study import SmallStudy, options
from framefold.errors import command
from framefold.study.command import run
study = SmallStudy(Path(sys.argv[1]), Path(sys.argv[2]))
command(lambda: run(options(), study.root, study.commands))()
"""


@pytest.fixture
def study(tmp_path: Path) -> SmallStudy:
    return make(tmp_path)


def ablate(study: SmallStudy, **changes) -> list[str]:
    """The runs that were made."""
    run(options(**changes), study.root, study.commands)
    return study.ran()


def test_all_arms_run_with_one_seed_before_the_next(study):
    assert ablate(study) == RUNS
    assert study.table() == RUNS


def test_the_table_starts_with_the_agreed_columns(study):
    ablate(study, arms=["default"], seeds=[0])
    header, *rows = (study.root / "metrics/ablation.csv").read_text().splitlines()
    assert header.split(",")[: len(FIRST)] == FIRST
    assert [row.split(",")[:4] for row in rows] == [
        ["tiny", "default", "0", split] for split in ("out_of_fold", "holdout", "test")
    ]


def test_each_run_gets_the_params_of_its_arm_and_seed(study):
    ablate(study, arms=["no_smoothing"], seeds=[1])
    params = yaml.safe_load((study.root / ".ablation/tiny/params.yaml").read_text())
    assert (params["seed"], params["finetune"]["label_smoothing"], params["finetune"]["epochs"]) == (1, 0, 2)
    assert (study.root / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_what_is_recorded_is_not_run_again_even_without_the_clone(study):
    """Nor on a machine that has only what is in git, at a later commit."""
    ablate(study)
    study.commit()
    elsewhere = SmallStudy(study.root.parent / "elsewhere", study.prepared)
    study.git("clone", "--quiet", str(study.root), str(elsewhere.root))
    assert ablate(elsewhere) == []


def test_arms_and_seeds_can_be_chosen(study):
    assert ablate(study, arms=["ladder"], seeds=[1]) == ["bare-1", "smoothing-1", "averaging-1"]
    write_outcome(study.prepared / "pgd-1", videos(), videos().label)
    assert ablate(study, arms=["pgd", "bare"], seeds=[0, 1]) == ["bare-0", "pgd-0", "pgd-1"]


def test_an_unknown_arm_is_refused(study):
    with pytest.raises(UserError, match=r"no arms bear; there are bare, smoothing"):
        ablate(study, arms=["bear"])


def test_results_of_other_params_are_replaced_with_a_warning(study, caplog):
    ablate(study, seeds=[0])
    study.write_study(
        without=[{"name": "no_smoothing", "what": "less", "overrides": {"finetune.label_smoothing": 0.05}}]
    )
    assert ablate(study, seeds=[0]) == ["no_smoothing-0"]
    assert "no_smoothing-0: made with other params or code, will be replaced" in caplog.text
    assert sorted(study.table()) == sorted(RUNS_OF_SEED_0)


def test_results_of_other_code_are_replaced_unless_they_are_to_be_kept(study):
    ablate(study, seeds=[0])
    (study.root / "stages/train.py").write_text("print(2)\n")
    study.commit()
    assert ablate(study, arms=["bare", "pgd"], seeds=[0], keep_stale=True) == []
    assert ablate(study, arms=["bare", "pgd"], seeds=[0]) == ["bare-0", "pgd-0"]
    assert ablate(study, arms=["bare", "pgd"], seeds=[0]) == []


def test_a_result_without_its_labels_counts_as_missing(study):
    ablate(study, seeds=[0])
    (study.root / "metrics/ablation/tiny/bare-0.parquet").unlink()
    assert ablate(study, seeds=[0]) == ["bare-0"]


def test_a_failing_run_is_shown_and_passed_over(study, caplog):
    study.prepared.joinpath("failing").write_text("method: pgd")
    with pytest.raises(UserError, match="pgd-0 failed"):
        ablate(study, seeds=[0])
    assert study.ran() == [run for run in RUNS_OF_SEED_0 if run != "pgd-0"]
    assert "exit status 3" in caplog.text
    assert "loss is NaN" in caplog.text
    assert "pgd-0" not in study.table()
    assert not (study.root / "metrics/ablation/tiny/pgd-0.parquet").exists()
    (study.prepared / "failing").unlink()
    assert ablate(study, seeds=[0]) == ["pgd-0"]


def test_nothing_runs_that_is_not_committed(study):
    (study.root / "stages/train.py").write_text("print(2)\n")
    with pytest.raises(UserError, match=r"stages/train.py is not as committed"):
        ablate(study)


def test_the_clone_runs_the_commit_that_is_recorded(study):
    ablate(study, arms=["bare"], seeds=[0])
    (study.root / "stages/train.py").write_text("print(2)\n")
    study.commit()
    ablate(study, arms=["bare"], seeds=[0])
    assert (study.root / ".ablation/tiny/stages/train.py").read_text() == "print(2)\n"
    assert Records(study.root, "tiny").rows()[0]["commit"] == study.git("rev-parse", "HEAD")[:12]


def test_the_clone_s_lock_file_still_tells_what_was_last_run_there(study):
    """And the first time, that of the project."""
    (study.root / "dvc.lock").write_text("of the project\n")
    study.commit()
    lock = study.root / ".ablation/tiny/dvc.lock"
    ablate(study, arms=["bare"], seeds=[0])
    assert lock.read_text() == "of the project\n"
    lock.write_text("of the clone\n")
    (study.root / "stages/train.py").write_text("print(2)\n")
    study.commit()
    ablate(study, arms=["bare"], seeds=[0])
    assert lock.read_text() == "of the clone\n"
    assert (study.root / "dvc.lock").read_text() == "of the project\n"


def test_a_cache_can_be_shared(study, tmp_path):
    (study.root / ".dvc").mkdir()
    (study.root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    study.commit()
    ablate(study, arms=["bare"], seeds=[0], cache=tmp_path / "cache", workdir=tmp_path / "work")
    own = [sys.executable, "-m", "dvc", "cache", "dir"]
    assert subprocess.run(own, cwd=tmp_path / "work", capture_output=True, text=True).stdout.strip() == str(
        tmp_path / "cache"
    )


def test_results_are_committed_one_by_one_and_nothing_else(study):
    (study.root / "notes.txt").write_text("mine")
    study.git("add", "notes.txt")
    study.git("config", "user.name", "t")
    study.git("config", "user.email", "t@t")
    ablate(study, arms=["bare", "pgd"], seeds=[0], commit=True)
    log = study.git("log", "--format=%s", "--name-only", "-2").split("\n")
    assert [line for line in log if line] == [
        *("Ablation: tiny, pgd, seed 0", "metrics/ablation.csv", "metrics/ablation/tiny/pgd-0.parquet"),
        *("metrics/ablation_models.csv", "metrics/ablation_optimism.csv"),
        *("Ablation: tiny, bare, seed 0", "metrics/ablation.csv", "metrics/ablation/tiny/bare-0.parquet"),
        *("metrics/ablation/tiny/truth.parquet", "metrics/ablation_models.csv", "metrics/ablation_optimism.csv"),
    ]
    assert study.git("status", "--porcelain").split() == ["A", "notes.txt"]


# Machines


def machines(study: SmallStudy) -> dict[tuple[str, int], str]:
    return {key: made.machine for key, made in Records(study.root, "tiny").made().items()}


def test_the_kind_of_machine_is_recorded(study):
    ablate(study, arms=["bare"], seeds=[0])
    study.move("AMX")
    ablate(study, arms=["bare"], seeds=[1])
    assert machines(study) == {("bare", 0): "AVX2", ("bare", 1): "AMX"}


def test_a_seed_that_was_begun_on_another_kind_of_machine_goes_on_there_alone(study, caplog):
    ablate(study, arms=["default"], seeds=[0])
    study.move("AMX")
    assert ablate(study) == [run for run in RUNS if run not in RUNS_OF_SEED_0]
    assert "tiny: 5 runs of seed 0 passed over, it was begun on AVX2 and this is AMX; run them there" in caplog.text
    study.move("AVX2")
    assert ablate(study) == [run for run in RUNS_OF_SEED_0 if run != "default-0"]
    assert set(machines(study).values()) == {"AVX2", "AMX"}


def test_results_that_no_longer_count_hold_a_seed_nowhere(study):
    ablate(study, seeds=[0])
    (study.root / "stages/train.py").write_text("print(2)\n")
    study.commit()
    study.move("AMX")
    assert ablate(study, seeds=[0], keep_stale=True) == []
    assert ablate(study, seeds=[0]) == RUNS_OF_SEED_0
    assert set(machines(study).values()) == {"AMX"}


def test_where_the_kind_of_machine_cannot_be_told_nothing_is_run(study):
    (study.prepared / "machine").unlink()
    with pytest.raises(UserError, match="nothing can be run here, exit status 1"):
        ablate(study)
    assert study.ran() == []


def test_a_run_is_expected_to_take_as_long_as_its_arm_last_took_on_such_a_machine(study):
    from framefold.study.arms import expand, read_study

    (bare,) = planned(expand(read_study("tiny", study.root), [], study.root), ["bare"], [2])
    made = {("bare", 0): Made("", "", "", "AVX2", 30), ("bare", 1): Made("", "", "", "AMX", 10)}
    assert [expected_seconds(bare, made, machine) for machine in ("AVX2", "AMX", "H200")] == [30, 10, 10]


# Time


def test_a_run_that_would_not_end_in_time_is_not_started(study, monkeypatch, caplog):
    """A clock that only runs while runs do, 60 s each; 3.5 minutes hold three, and the first of them is unknown."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    records = Records(study.root, "tiny")

    class Clone:
        commit = "c" * 40

        def run(self, name, params):
            clock[0] += 60
            return study.prepared / name

    caplog.set_level(logging.INFO)
    from framefold.study.arms import expand, read_study

    runs = planned(expand(read_study("tiny", study.root), [], study.root), [], [0])
    assert work_off(runs, Clone(), records, Place("code", "AVX2"), Budget(3.5), commit=False) == []
    assert study.table() == RUNS_OF_SEED_0[:3]
    assert f"out of time; 3 left, about 3 minutes: {', '.join(RUNS_OF_SEED_0[3:])}" in caplog.text


def test_a_study_that_is_out_of_time_ends_well_and_goes_on_later(study):
    ablate(study, arms=["bare"], seeds=[0])
    table = study.root / "metrics/ablation.csv"
    table.write_text("\n".join(line.rpartition(",")[0] + ",7200" for line in table.read_text().splitlines()[1:]))
    table.write_text(",".join(FINAL_COLUMNS) + "\n" + table.read_text() + "\n")
    assert ablate(study, budget=30) == []
    assert ablate(study, budget=150, seeds=[0]) == RUNS_OF_SEED_0[1:]


def test_an_arm_is_expected_to_take_as_long_as_last_time(study):
    from framefold.study.arms import expand, read_study

    runs = planned(expand(read_study("tiny", study.root), [], study.root), ["bare", "pgd"], [1])
    made = {
        ("bare", 0): Made("", "", "", "", 100),
        ("default", 0): Made("", "", "", "", 10),
        ("averaging", 0): Made("", "", "", "", 30),
    }
    assert [expected_seconds(each, made) for each in runs] == [100, 30]
    assert expected_seconds(runs[0], {}) is None


def test_a_dry_run_lists_what_is_left_and_starts_nothing(study, caplog):
    caplog.set_level(logging.INFO)
    ablate(study, arms=["ladder", "default"])
    caplog.clear()
    show(options(), study.root)
    assert study.ran() == []
    lines = [record.getMessage().split() for record in caplog.records]
    assert [line[2] for line in lines[:-1]] == ["no_smoothing-0", "pgd-0", "no_smoothing-1"]
    assert "3 runs left, about 0 minutes" in caplog.text
    assert lines[0][3:] == ["(begun", "on", "AVX2)"]


# Interruptions


def start(study: SmallStudy) -> subprocess.Popen:
    """A study in a process of its own, in the middle of its first run."""
    (study.prepared / "slow").touch()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])}
    command = [sys.executable, "-c", SIGNALLED, str(study.root), str(study.prepared)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (study.prepared / "sleeping").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_what_runs_and_leaves_whole_files(study, number):
    ablate(study, arms=["bare"], seeds=[0])
    before = {path: path.read_bytes() for path in (study.root / "metrics").rglob("*") if path.is_file()}
    process = start(study)
    process.send_signal(number)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 128 + number
    assert (study.prepared / "told").exists()
    assert {path: path.read_bytes() for path in (study.root / "metrics").rglob("*") if path.is_file()} == before
    (study.prepared / "slow").unlink()
    assert ablate(study, seeds=[0]) == RUNS_OF_SEED_0[1:]


def test_a_second_study_waits_for_what_a_killed_one_has_left_running(study):
    process = start(study)
    process.kill()
    process.communicate()
    with pytest.raises(UserError, match="is at work there"):
        ablate(study)
    os.kill(int((study.prepared / "sleeping").read_text()), signal.SIGTERM)
    (study.prepared / "slow").unlink()
    deadline = time.monotonic() + 30
    while study.ran() == [] and time.monotonic() < deadline:
        with contextlib.suppress(UserError):  # until it has ended
            run(options(arms=["bare"], seeds=[0]), study.root, study.commands)
        time.sleep(0.05)
    assert study.table() == ["bare-0"]


def test_the_cache_is_tidied_when_a_seed_is_done_with(study, tmp_path):
    """Not one that others share."""
    chosen = {"arms": ["bare", "smoothing"], "seeds": [0, 1]}
    run(options(**chosen), study.root, study.commands)
    assert study.started() == ["bare-0", "smoothing-0", "tidied", "bare-1", "smoothing-1"]
    shutil.rmtree(study.root / "metrics")
    (study.root / ".ablation/tiny/.dvc").mkdir()
    run(options(**chosen, cache=tmp_path / "cache"), study.root, study.commands)
    assert "tidied" not in study.started()


def test_two_studies_do_not_share_a_clone(study):
    from framefold.study.workspace import Workspace

    workspace = Workspace(study.root, study.root / ".ablation/tiny", study.commands, None)
    with workspace.opened(), pytest.raises(UserError, match="is at work there"):
        ablate(study)


def test_a_foreign_folder_is_not_taken_for_a_clone(study, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="not a clone that a study has made"):
        ablate(study, workdir=tmp_path / "mine")


def test_every_arm_has_a_prepared_outcome(study):
    """The helper and this module speak of the same arms."""
    assert {path.name.rpartition("-")[0] for path in study.prepared.iterdir() if path.is_dir()} == set(ACCURACY)
    shutil.rmtree(study.prepared)
