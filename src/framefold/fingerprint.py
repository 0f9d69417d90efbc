"""What a half-finished run was made of: params, inputs and code. A run resumes only if all of it is the same."""

import ast
import hashlib
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from framefold.errors import UserError
from framefold.storage import fingerprint_of

PACKAGE = Path(__file__).parent  # src/framefold
STAGES = PACKAGE.parents[1] / "stages"  # one may import another
LIBRARIES = ("numpy", "torch", "accelerate", "pillow", "pyarrow", "tokenizers")  # whose versions show in bytes
WHOLE = 1 << 20  # files up to this size are digested whole
EDGE = 1 << 16  # of larger ones, this much at each end, with size and time of modification


def stage_fingerprint(
    params: Mapping[str, Any], inputs: Iterable[Path | str], modules: Iterable[str] = ()
) -> dict[str, str]:
    """The stamp of a stage's scratch folder: {"params", "inputs", "code", "versions"}.

    params: JSON-able values (`group.model_dump(mode="json")`, seed, precision, fold); inputs: files and folders that
    the stage reads; modules: framefold modules that are imported by name (`framefold.models.<arch>`).
    Cheap: a large file costs two small reads. A file that was rebuilt with equal bytes may look changed, which costs
    a resume; a changed one never looks the same.
    """
    return {
        "params": fingerprint_of(params),
        "inputs": fingerprint_of({str(path): path_digest(path) for path in inputs}),
        "code": code_fingerprint(modules),
        "versions": fingerprint_of({name: version(name) for name in LIBRARIES}),
    }


def path_digest(path: Path | str) -> str:
    """Digest of a file or of a folder's files. UserError: there is no such path."""
    path = Path(path)
    if path.is_dir():
        files = sorted(child for child in path.rglob("*") if child.is_file())
        return fingerprint_of({child.relative_to(path).as_posix(): file_digest(child) for child in files})
    if not path.is_file():
        raise UserError(f"{path}: missing; build it with `dvc repro`")
    return file_digest(path)


def file_digest(path: Path) -> str:
    """Digest of the content of a small file; of a large one's edges, size and time of modification."""
    digest = hashlib.blake2b(digest_size=16)
    stat = path.stat()
    with path.open("rb") as file:
        if stat.st_size <= WHOLE:
            digest.update(file.read())
        else:
            digest.update(f"{stat.st_size} {stat.st_mtime_ns} ".encode() + file.read(EDGE))
            file.seek(-EDGE, 2)
            digest.update(file.read(EDGE))
    return digest.hexdigest()


def code_fingerprint(modules: Iterable[str] = ()) -> str:
    """Digest of the sources of the running script, of `modules`, and of every framefold module or stage they import.

    Imports are read from the sources, so one inside a function counts before it has happened.
    """
    waiting = {path for name in modules if (path := _source(name))} | _script()
    seen: dict[Path, bytes] = {}
    while waiting:
        path = waiting.pop()
        seen[path] = path.read_bytes()
        waiting |= _imports(seen[path]) - seen.keys()
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(seen, key=lambda path: (path.name, path.as_posix())):
        digest.update(path.name.encode() + b"\0" + hashlib.blake2b(seen[path]).digest())
    return digest.hexdigest()


def _script() -> set[Path]:
    """Source of the script that runs: the stage."""
    script = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "-")
    return {script} if script.suffix == ".py" and script.is_file() else set()


def _imports(source: bytes) -> set[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {path for name in names if (path := _source(name))}


def _source(module: str) -> Path | None:
    """File of a framefold module or of a stage; None for what is no module of ours (a class, another package)."""
    package, *rest = module.split(".")
    root = {PACKAGE.name: PACKAGE, STAGES.name: STAGES}.get(package)
    if root is None:
        return None
    path = root.joinpath(*rest)
    candidates = (path.with_suffix(".py"), path / "__init__.py") if rest else (path / "__init__.py",)
    return next((candidate for candidate in candidates if candidate.is_file()), None)
