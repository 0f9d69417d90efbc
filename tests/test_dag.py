"""dvc.yaml says what the stages are: code, params, names. Run: .venv/bin/python -m pytest tests/test_dag.py"""

import ast
import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from import_closure import ROOT, declared, expected, unfolded

from framefold.side_by_side import read_graph

DAG: dict[str, Any] = unfolded(yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
EARLIER = "earlier_"  # stages of rounds before the last run the files of the last one's
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def paths(stage: str, kind: str) -> list[str]:
    entries = DAG[stage].get(kind, [])
    return [path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)]


@pytest.mark.parametrize("stage", DAG)
def test_code_deps_are_what_the_stage_imports(stage):
    """If this fails: python tests/import_closure.py --write"""
    assert declared(DAG[stage]) == expected(stage, DAG[stage])


@pytest.fixture
def small_project(tmp_path: Path) -> Path:
    """A stage that reaches modules in every way that counts, and one module that never runs."""
    sources = {
        "stages/work.py": "from framefold.data import plain\ndef f():\n    from framefold.deep.inner import g\n",
        "src/framefold/__init__.py": '"""Nothing runs here."""\n',
        "src/framefold/data/__init__.py": "",
        "src/framefold/data/plain.py": "from framefold.models.registry import build\n",
        "src/framefold/deep/__init__.py": "import framefold.extra\n",
        "src/framefold/deep/inner.py": "if TYPE_CHECKING:\n    import framefold.unused\n",
        "src/framefold/extra.py": "",
        "src/framefold/unused.py": "",
        "src/framefold/models/__init__.py": "",
        "src/framefold/models/registry.py": "",
        "src/framefold/models/single_stream.py": "from framefold.models import heads\n",
        "src/framefold/models/dual_stream.py": "from framefold.models import heads\n",
        "src/framefold/models/heads.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_closure_follows_every_kind_of_import(small_project):
    found = expected("work", {"matrix": {"arch": "${archs}"}}, root=small_project)
    library = [
        "data/plain",
        "deep/__init__",
        "deep/inner",
        "extra",
        "models/${item.arch}",
        "models/heads",
        "models/registry",
    ]
    assert found == {"stages/work.py", *(f"src/framefold/{name}.py" for name in library)}


def test_a_stage_without_a_matrix_over_archs_depends_on_all_of_them(small_project):
    found = expected("work", {}, root=small_project)
    assert {f"src/framefold/models/{arch}.py" for arch in ("single_stream", "dual_stream")} <= found


def test_every_stage_file_is_a_stage_and_the_other_way_round():
    files = {path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__"}
    assert files == {stage.removeprefix(EARLIER) for stage in DAG}


@pytest.mark.parametrize("stage", DAG)
def test_a_stage_is_one_python_command_named_after_its_file(stage):
    assert DAG[stage]["cmd"].split(" ")[:3] == ["python", "-m", f"stages.{stage.removeprefix(EARLIER)}"]
    assert DAG[stage]["desc"]


def loaded_keys(stage: str) -> set[str]:
    """Keys of params.yaml that the stage's file loads: `load(XParams)`, `load(Group, "a.b")`, `load_value("seed")`."""
    name = stage.removeprefix(EARLIER)
    tree = ast.parse((ROOT / "stages" / f"{name}.py").read_text(encoding="utf-8"))
    groups = {
        alias.asname or alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("framefold.params.")
        for alias in node.names
    }
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    others = [module.removeprefix("stages.") for module in modules if module.startswith("stages.")]
    keys: set[str] = set().union(*map(loaded_keys, others))  # refit does what finetune does
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        assert isinstance(call.func, ast.Name)
        if call.func.id == "load_value":
            keys |= keys_of(call.args[0], tree)
        elif call.func.id == "load":
            group = call.args[0].id if isinstance(call.args[0], ast.Name) else ""
            keys |= keys_of(call.args[1], tree) if len(call.args) > 1 else {groups[group].key}
    return keys


def keys_of(node: ast.expr, tree: ast.AST) -> set[str]:
    """A literal key; of an f-string the part before its first value; for a loop variable its literals."""
    if isinstance(node, ast.Name):
        loops = [part for part in ast.walk(tree) if isinstance(part, ast.comprehension)]
        runs_over = [loop.iter for loop in loops if isinstance(loop.target, ast.Name) and loop.target.id == node.id]
        return {str(ast.literal_eval(item)) for part in runs_over if isinstance(part, ast.Tuple) for item in part.elts}
    text = node.values[0] if isinstance(node, ast.JoinedStr) else node
    assert isinstance(text, ast.Constant), f"line {node.lineno}: write the key of params.yaml as a literal"
    return {str(text.value).rstrip(".")}


def stated_keys(stage: str) -> list[str]:
    return [key.split(".${")[0] for key in DAG[stage].get("params", [])]


def inside(key: str, other: str) -> bool:
    return key == other or key.startswith(f"{other}.")


# Loaded with their group, but of no effect on the stage: a change must not re-run it.
NOT_ROOT = {"data.generated", "data.categories"}
TEACHER_SIZES = {"teacher.text", "teacher.model", "teacher.training", "student.text"}
UNUSED = {
    "ingest": {"data.generated"},
    "adapt_clip": NOT_ROOT,
    "extract_frames": NOT_ROOT,
    "train_teacher": {"teacher.folds"},
    "pseudo_label": TEACHER_SIZES,
    "earlier_pseudo_label": {*TEACHER_SIZES, "pseudo_label.teachers"},
    "average_weights": {"student.text"},
    "earlier_average_weights": {"student.text", "full_data"},  # there is no refit in earlier rounds
    "reference": {*NOT_ROOT, "ensemble.blend", "ensemble.weights", "ensemble.min_gain"},
    "ensemble": {
        *NOT_ROOT,
        *("student.text", "average_weights.method", "average_weights.last", "ingest.max_rejected", "ingest.duplicates"),
        *("text.vocab", "text.vocab_size", "text.words", "text.max_unknown"),
    },
}


@pytest.mark.parametrize("stage", DAG)
def test_params_are_those_that_the_stage_loads(stage):
    """Every loaded value is stated or known to be unused, and nothing is stated that the stage does not load."""
    loaded, stated = loaded_keys(stage), stated_keys(stage)
    unstated = {key for key in loaded if not any(inside(key, s) for s in stated)}
    missing = {part for key in unstated for part in parts_of(key) if not any(inside(part, s) for s in stated)}
    assert missing == UNUSED.get(stage, set())
    assert [s for s in stated if not any(inside(s, key) for key in loaded)] == []


def parts_of(key: str) -> list[str]:
    """The keys one level inside `key`, or `key` itself where it is a plain value or named by the item."""
    block = value_of(key)
    return [f"{key}.{part}" for part in block] if isinstance(block, dict) else [key]


def value_of(key: str) -> Any:
    block = PARAMS
    for part in key.split("."):
        assert part in block, key
        block = block[part]
    return block


@pytest.mark.parametrize("stage", DAG)
def test_stated_params_exist(stage):
    for key in stated_keys(stage):
        value_of(key)


@pytest.mark.parametrize(("stage", "never"), [("train_teacher", "teacher.folds"), ("finetune", "folds")])
def test_adding_a_fold_cannot_touch_the_others(stage, never):
    assert never not in stated_keys(stage)
    assert never.split(".")[0] not in stated_keys(stage)


def test_params_of_one_architecture_do_not_pretrain_the_other():
    """Whatever `pretrain` gives by architecture is listed for that of the item alone."""
    archs, listed = set(PARAMS["archs"]), set(DAG["pretrain"]["params"])
    by_arch = [key for key, value in PARAMS["pretrain"].items() if isinstance(value, dict) and archs & set(value)]
    assert {"epochs", "weights"} <= set(by_arch)
    assert listed >= {f"pretrain.{key}.${{item.arch}}" for key in by_arch}
    assert not listed & {"pretrain", *(f"pretrain.{key}" for key in by_arch)}


@pytest.mark.parametrize("stage", DAG)
def test_metrics_are_in_git_and_outputs_are_not(stage):
    small = [entry for kind in ("metrics", "plots") for entry in DAG[stage].get(kind, [])]
    assert all(
        path.startswith("metrics/") and not options["cache"] for entry in small for path, options in entry.items()
    )
    assert all(path.startswith(("data/", "models/")) for path in paths(stage, "outs"))


@pytest.mark.parametrize("folder", ["stages", "src/framefold"])
def test_no_stage_needs_dvc_or_transformers(folder):
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not {"dvc", "transformers"} & {name.split(".")[0] for name in names}, path


def test_the_library_imports_nothing_from_stages():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    assert not any("from stages" in text or "import stages" in text for text in sources)


@pytest.fixture
def stage_names(tmp_path: Path):
    """What `dvc stage list` shows for given changes of params.yaml."""
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))

    def names(**changes: Any) -> set[str]:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS | changes), encoding="utf-8")
        subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
        command = [sys.executable, "-m", "dvc", "stage", "list", "--names-only"]
        result = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60)
        return set(result.stdout.split())

    return names


def test_your_own_data_removes_the_demo_stage(stage_names):
    assert "demo_data@demo" not in stage_names(data=PARAMS["data"] | {"root": "data/own", "generated": []})


def test_without_full_data_there_is_no_refit(stage_names):
    assert not any(name.startswith("refit") for name in stage_names())
    assert {f"refit@{arch}-all" for arch in PARAMS["archs"]} <= stage_names(full_data=["all"])


def test_lists_in_params_shape_the_dag(stage_names):
    names = stage_names(archs=["dual_stream"], folds=[1, 3])
    assert {name for name in names if name.startswith("finetune")} == {
        "finetune@dual_stream-1",
        "finetune@dual_stream-3",
    }
    assert "extract_frames@small-unlabeled" in names


def test_without_earlier_rounds_there_is_none_of_their_stages(stage_names):
    assert not {name for name in stage_names() if name.startswith(EARLIER)}


def test_every_earlier_round_has_its_labels_students_and_averages(stage_names):
    rounds = {"first": "models/teacher", "second": "models/rounds/first/swa"}
    labels = PARAMS["pseudo_label"] | {"teachers": "models/rounds/second/swa"}
    names = stage_names(earlier_rounds=rounds, pseudo_label=labels, archs=["dual_stream"], folds=[0, 2])
    expected = {f"pseudo_label@{name}" for name in rounds}
    expected |= {f"{stage}@{name}-dual_stream" for name in rounds for stage in ("pretrain", "average_weights")}
    expected |= {f"finetune@{name}-dual_stream-{fold}" for name in rounds for fold in (0, 2)}
    assert {name for name in names if name.startswith(EARLIER)} == {EARLIER + name for name in expected}
    assert {"pseudo_label", "pretrain@dual_stream", "average_weights@dual_stream"} <= names


def test_a_round_waits_for_the_students_that_label_in_it(stage_names, tmp_path):
    labels = PARAMS["pseudo_label"] | {"teachers": "models/rounds/second/swa"}
    stage_names(earlier_rounds={"first": "models/teacher", "second": "models/rounds/first/swa"}, pseudo_label=labels)
    command = [sys.executable, "-m", "dvc", "dag", "--dot"]
    dot = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout
    graph = read_graph(dot)
    students = {f"average_weights@{{}}-{arch}" for arch in PARAMS["archs"]}
    teachers = {f"train_teacher@{fold}" for fold in PARAMS["teacher"]["folds"]}
    assert graph["earlier_pseudo_label@first"] >= teachers
    for later, earlier in (("earlier_pseudo_label@second", "first"), ("pseudo_label", "second")):
        assert graph[later] >= {EARLIER + name.format(earlier) for name in students}
        assert not graph[later] & teachers
