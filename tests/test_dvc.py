"""What re-runs when, and that results are the same again. Run: .venv/bin/python -m pytest -m medium tests/test_dvc.py

All tests share one smoke run (tests/conftest.py); those that change something work on a copy of it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Project, Run, SmokeRun, environment_of

from framefold.params.base import load
from framefold.params.finetune import FinetuneParams
from framefold.side_by_side import read_graph

pytestmark = pytest.mark.medium

JOINS = {"average_weights", "reweight", "ensemble"}
ARCHS = ("single_stream", "dual_stream")


def test_a_second_repro_says_up_to_date(smoke_run: SmokeRun):
    again = smoke_run.project.repro()
    assert again.ran == again.cached == []
    assert "up to date" in again.output


def test_a_run_leaves_nothing_for_git_to_see(smoke_run: SmokeRun):
    """Outputs are ignored by the hand-written .gitignore, DVC adds no ignore files, no scratch is left."""
    assert smoke_run.project.run("git", "status", "--porcelain") == ""
    assert [path.name for path in (smoke_run.project.path / ".scratch").iterdir()] == [".locks"]
    tracked = smoke_run.project.run("git", "ls-files", "data", "models", "metrics").split()
    assert {path for path in tracked if not path.startswith("metrics/")} == {"data/README.md", "models/README.md"}


def test_every_stage_ran_in_the_first_run(smoke_run: SmokeRun):
    """A run from scratch takes nothing from elsewhere, so the other tests of this file mean something."""
    stages = yaml.safe_load((smoke_run.project.path / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert smoke_run.first.kinds == {stage for stage in stages if not stage.startswith("earlier_")}  # no such rounds
    assert smoke_run.first.cached == []


def test_two_runs_from_scratch_give_identical_locks(smoke_run: SmokeRun, tmp_path: Path):
    """In another folder and with another hash seed: dvc.lock holds the digest of every output."""
    other = clone_without_results(smoke_run.project, tmp_path / "another" / "place", hash_seed=1)
    assert other.repro().cached == []
    assert differing_stages(other.lock, smoke_run.project.lock) == []
    assert other.lock == smoke_run.project.lock


def test_two_stages_at_a_time_give_the_same_lock_as_one(smoke_run: SmokeRun, tmp_path: Path):
    """But for the order of its entries, which is that in which the stages end."""
    other = clone_without_results(smoke_run.project, tmp_path / "project")
    run = other.report(other.framefold("repro", "--jobs", "2"))
    assert run.cached == []
    assert sorted(run.ran) == sorted(smoke_run.first.ran)
    assert yaml.safe_load(other.lock) == yaml.safe_load(smoke_run.project.lock)


def test_the_graph_of_side_by_side_runs_is_that_of_dvc(smoke_run: SmokeRun):
    """A graph that is read wrongly would leave everything to the last call, one stage after the other."""
    graph = read_graph(smoke_run.project.dvc("dag", "--dot"))
    assert sorted(graph) == sorted(smoke_run.first.ran)
    assert graph["pretrain@dual_stream"] >= {"pseudo_label", "tokenize"}
    assert "pretrain@dual_stream" in graph["finetune@dual_stream-0"]
    assert "pretrain@single_stream" not in graph["finetune@dual_stream-0"]


def clone_of(project: Project, path: Path, hash_seed: int = 0) -> Project:
    project.run("git", "clone", "--quiet", str(project.path), str(path))
    return Project(path, environment_of(path, hash_seed))


def clone_without_results(project: Project, path: Path, hash_seed: int = 0) -> Project:
    clone = clone_of(project, path, hash_seed)
    clone.run("git", "checkout", "--quiet", "HEAD~1")
    return clone


def differing_stages(lock: str, other: str) -> list[str]:
    ours, theirs = (yaml.safe_load(text)["stages"] for text in (lock, other))
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def test_a_planted_difference_in_an_output_shows_in_the_lock(smoke_run: SmokeRun):
    """The comparison above can fail: one digit of one digest is enough."""
    lock = smoke_run.project.lock
    planted = lock.replace("md5: ", "md5: 0", 1)
    assert len(differing_stages(lock, planted)) == 1


def test_a_clone_regenerates_the_frames_and_takes_the_rest_from_the_cache(smoke_run: SmokeRun, tmp_path: Path):
    """The frames are in no cache: without them `framefold predict` and a re-run of extraction would be stuck."""
    clone = clone_of(smoke_run.project, tmp_path / "project")
    clone.dvc("cache", "dir", "--local", str(smoke_run.project.path / ".dvc" / "cache"))
    run = clone.repro()
    assert run.ran == ["demo_data@demo"]
    assert (clone.path / "data" / "predictions" / "result.csv").is_file()
    assert clone.run("git", "status", "--porcelain", "--untracked-files=no") == ""


# One changed value, only the stages it touches


@pytest.fixture(scope="module")
def experiment(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    """`dvc exp run -S finetune.lr.head=3e-03`, committed on a branch of its own."""
    project = smoke_run.project.copy(tmp_path_factory.mktemp("experiment") / "project")
    run = project.repro("exp", "run", "--name", "faster", "--set-param", "finetune.lr.head=3e-03")
    project.run("git", "checkout", "--quiet", "-b", "faster")
    project.commit("faster")
    return project, run


def test_changing_finetune_runs_finetune_and_what_follows(experiment: tuple[Project, Run]):
    _, run = experiment
    assert run.kinds == {"finetune", "refit"} | JOINS
    assert len([name for name in run.ran if name.startswith("finetune")]) == 4


def test_an_override_in_scientific_notation_reaches_the_stages_as_a_number(experiment: tuple[Project, Run]):
    """The value that `exp run -S` wrote is the number for the typed params, whatever YAML makes of it."""
    project, _ = experiment
    assert load(FinetuneParams, path=project.path / "params.yaml").lr.head == 3e-3


def test_metrics_diff_compares_two_branches(experiment: tuple[Project, Run]):
    project, _ = experiment
    diff = json.loads(project.run("dvc", "metrics", "diff", "main", "faster", "--json"))
    changed = diff["metrics/metrics.json"]  # of the smoke run's few holdout videos all may be labelled the same
    assert any(name.startswith(("ensemble.", "single_stream.", "dual_stream.")) for name in changed)
    assert all(entry["old"] != entry["new"] for entry in changed.values())
    assert "metrics/split.json" not in diff


def test_changing_one_architecture_leaves_the_other_cached(smoke_copy: Project):
    run = smoke_copy.repro("exp", "run", "--set-param", "models.dual_stream.head_hidden=48")
    assert run.kinds == {"pretrain", "finetune", "refit"} | JOINS
    assert [name for name in run.ran if "single_stream" in name] == []


@pytest.fixture(scope="module")
def fold_added(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    project = smoke_run.project.copy(tmp_path_factory.mktemp("folds") / "project")
    set_params(project, folds=[0, 1, 2])
    return project, project.repro()


def set_params(project: Project, **changes: Any) -> None:
    path = project.path / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(params | changes), encoding="utf-8")


def test_adding_a_fold_trains_that_fold_only(fold_added: tuple[Project, Run]):
    _, run = fold_added
    assert run.kinds == {"finetune", "reference"} | JOINS
    assert {name for name in run.ran if name.startswith("finetune")} == {f"finetune@{arch}-2" for arch in ARCHS}


def test_removing_a_fold_leaves_no_trace_of_it(fold_added: tuple[Project, Run], smoke_run: SmokeRun):
    """After adding fold 2 and removing it again, every output is what it was, and no folder of that fold is left."""
    project, _ = fold_added
    assert traces(project, "2")
    set_params(project, folds=[0, 1])
    run = project.repro()
    assert "finetune" not in run.kinds
    assert traces(project, "2") == []
    assert differing_stages(project.lock, smoke_run.project.lock) == [
        "finetune@dual_stream-2",
        "finetune@single_stream-2",
    ]


def traces(project: Project, fold: str) -> list[str]:
    """Folders below models/ that belong to a student of this fold."""
    parents = (
        project.path / "models" / "finetune",
        project.path / "models" / "swa",
        project.path / "models" / "ensemble",
    )
    return sorted(str(path) for parent in parents for path in parent.rglob(fold) if path.is_dir())


# What a stage opens is among its deps


def test_stages_open_and_import_only_what_dvc_yaml_says(smoke_run: SmokeRun):
    """Seen while the smoke run ran: an undeclared file would go stale without DVC noticing."""
    seen = opened(smoke_run)
    assert {name.partition("@")[0] for name in seen} == smoke_run.first.kinds
    assert undeclared(seen, declared_paths(smoke_run)) == []


def test_a_planted_undeclared_file_is_found(smoke_run: SmokeRun):
    declared = declared_paths(smoke_run)
    declared["split"] -= {"src/framefold/data/folds.py"}
    assert "split: src/framefold/data/folds.py" in undeclared(opened(smoke_run), declared)


def opened(smoke_run: SmokeRun) -> dict[str, set[str]]:
    """Files of the project by stage item; params.yaml and runtime.yaml are declared by other means."""
    files: dict[str, set[str]] = {}
    for record in Path(smoke_run.project.environment["RECORD_OPENED"]).iterdir():
        lines = record.read_text(encoding="utf-8").splitlines()
        files.setdefault(record.name.rpartition(".")[0], set()).update(lines)
    watched = ("data/", "models/", "metrics/", "src/", "stages/")
    return {name: {path for path in paths if path.startswith(watched)} for name, paths in files.items()}


def declared_paths(smoke_run: SmokeRun) -> dict[str, set[str]]:
    """Deps and outs of every stage item as dvc.lock has them, parameters filled in."""
    stages = yaml.safe_load(smoke_run.project.lock)["stages"]
    return {
        name: {entry["path"] for kind in ("deps", "outs") for entry in stage.get(kind, [])}
        for name, stage in stages.items()
    }


def undeclared(seen: dict[str, set[str]], declared: dict[str, set[str]]) -> list[str]:
    return sorted(
        f"{name}: {path}"
        for name, paths in seen.items()
        for path in paths
        if not ignored(path) and not any(path == known or path.startswith(f"{known}/") for known in declared[name])
    )


def ignored(path: str) -> bool:
    """Packages without code, bytecode, a stage's hidden working files, the frames, for which their manifest stands, and
    the truth of the pool, which is for measuring only."""
    hidden = any(part.startswith(".") for part in path.split("/"))
    known = path.startswith("data/demo/zip_frames/") or path == "data/demo/annotations/unlabeled_truth.csv"
    return hidden or known or path.endswith((".pyc", "__init__.py"))
