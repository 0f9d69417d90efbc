"""What a result was made of: params and code. A result of other ones is stale."""

import ast
import re
from pathlib import Path
from typing import Any

import yaml

from framefold.storage import fingerprint_of
from framefold.study.machine_paths import named

LENGTH = 12
CODE = ("src/", "stages/")
OUTCOME = "src/framefold/study/outcome.py"  # what is recorded of a run
ITEM = re.compile(r"\$\{[^}]*\}")  # in a dependency: one file for each item


def params_digest(params: dict[str, Any]) -> str:
    """Of all params, the seed included; files count by their names, so it is the same on every machine."""
    return fingerprint_of(named(params))[:LENGTH]


def code_digest(root: Path) -> str:
    """Of the modules that dvc.yaml names and of what tells a run's outcome, without comments, docstrings and layout:
    a change of these is none."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    bodies = [stage.get("do", stage) for stage in stages.values()]  # do: what foreach repeats
    given = {str(path) for body in bodies for path in body["deps"] if str(path).startswith(CODE)}
    given.add(OUTCOME)
    files = sorted({path for pattern in given for path in root.glob(ITEM.sub("*", pattern))})
    content = {path.relative_to(root).as_posix(): meaning(path.read_text(encoding="utf-8")) for path in files}
    return fingerprint_of(content)[:LENGTH]


def meaning(source: str) -> str:
    """Python source, normalised, without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and _has_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    first = node.body[0] if node.body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
