"""Which modules of the project each stage imports, read from the sources; `deps` in dvc.yaml must say the same.

    python tests/import_closure.py           # print the differences
    python tests/import_closure.py --write   # rewrite the code part of every `deps` in dvc.yaml

Imports inside functions count. Packages' `__init__.py` count only when they hold code. `framefold.models.registry`
imports the architecture by its name: a stage item then depends on the file of its own and on what that file imports.
"""

import argparse
import ast
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = "framefold.models.registry"
ARCHS = ("single_stream", "dual_stream")
TEACHER_STAGES = ("train_teacher",)  # the teacher is always single_stream; students of an earlier round label as well


def closure(stage: str, per_arch: bool, root: Path = ROOT) -> set[str]:
    """Paths, as they stand in `deps`, of the stage's file and of every module of the project that it can import."""
    modules = _reachable([f"stages.{stage}"], root)
    if REGISTRY in modules:
        archs = ("single_stream",) if stage in TEACHER_STAGES else ARCHS
        own = {f"framefold.models.{arch}" for arch in archs}
        modules = _reachable([f"stages.{stage}", *sorted(own)], root)
        if per_arch:
            modules = (modules - own) | {"framefold.models.${item.arch}"}
    return {_path_of(module, root) for module in modules if not _is_empty_package(module, root)}


def is_code(dependency: str) -> bool:
    return dependency.startswith(("src/", "stages/"))


def declared(definition: dict[str, Any]) -> set[str]:
    return {str(dependency) for dependency in definition.get("deps", ()) if is_code(str(dependency))}


def expected(stage: str, definition: dict[str, Any], root: Path = ROOT) -> set[str]:
    """Of the stage's command, else of its name: the stages of earlier rounds run the files of the last one's."""
    own = definition.get("cmd", f"python -m stages.{stage}").split(" ")[2].removeprefix("stages.")
    return closure(own, per_arch="arch" in definition.get("matrix", {}), root=root)


def unfolded(stages: dict[str, Any]) -> dict[str, Any]:
    """Stage -> definition, that of one item where there is a `foreach`."""
    return {name: stage.get("do", stage) for name, stage in stages.items()}


def _reachable(start: list[str], root: Path) -> set[str]:
    seen: set[str] = set()
    queue = list(start)
    while queue:
        module = queue.pop()
        if module not in seen:
            seen.add(module)
            queue.extend(_imports(module, root))
    return seen


@cache
def _imports(module: str, root: Path) -> frozenset[str]:
    """Modules of the project that one module names in its import statements, and the packages that hold them."""
    path = _file_of(module, root)
    if path is None:
        raise FileNotFoundError(f"module {module} is not in the project")
    names: set[str] = set()
    for node in _runtime_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package=path.name == "__init__.py")
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    names |= {name.rpartition(".")[0] for name in names} | {module.rpartition(".")[0]}
    return frozenset(name for name in names if _file_of(name, root) is not None)


def _runtime_nodes(node: ast.AST) -> list[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`, which never run."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    return [node, *(inner for child in children for inner in _runtime_nodes(child))]


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".") if is_package else module.split(".")[:-1]
    parts = parts[: len(parts) - (node.level - 1)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _file_of(module: str, root: Path) -> Path | None:
    if module.split(".")[0] not in ("framefold", "stages"):
        return None
    base = (root / "src" if module.startswith("framefold") else root).joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _path_of(module: str, root: Path) -> str:
    if "${" in module:
        return "src/framefold/models/${item.arch}.py"
    path = _file_of(module, root)
    assert path is not None
    return path.relative_to(root).as_posix()


def _is_empty_package(module: str, root: Path) -> bool:
    path = _file_of(module, root)
    if path is None or path.name != "__init__.py":
        return False
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in statements)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite dvc.yaml")
    write = parser.parse_args().write
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 10_000, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    dag = yaml.load(ROOT / "dvc.yaml")
    for stage, definition in unfolded(dag["stages"]).items():
        wanted, stated = expected(stage, definition), declared(definition)
        for sign, paths in (("+", wanted - stated), ("-", stated - wanted)):
            for path in sorted(paths):
                print(f"{stage}: {sign} {path}")
        if write and wanted != stated:
            _replace_code(definition["deps"], sorted(wanted))
    if write:
        yaml.dump(dag, ROOT / "dvc.yaml")


def _replace_code(deps: list[Any], code: list[str]) -> None:
    """Keep the data dependencies, and the comments on them, in front; then the stage's file, then the library."""
    for position in reversed([i for i, dependency in enumerate(deps) if is_code(str(dependency))]):
        del deps[position]
    deps.extend(sorted(code, key=lambda path: (not path.startswith("stages/"), path)))


if __name__ == "__main__":
    main()
