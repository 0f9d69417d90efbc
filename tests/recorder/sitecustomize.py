"""Notes what a stage opens and imports: python runs this module at start-up when its folder is on PYTHONPATH.

One file per process below $RECORD_OPENED, named after the stage item; paths relative to the project. Files that native
code opens by itself (Parquet, safetensors) are not seen.
"""

import atexit
import os
import sys

STAGE, FOLDER, ROOT = (os.environ.get(name) for name in ("DVC_STAGE", "RECORD_OPENED", "DVC_ROOT"))
opened: set[str] = set()


def note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        opened.add(os.path.abspath(os.fspath(arguments[0])))


def write() -> None:
    opened.update(path for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None)))
    inside = sorted(os.path.relpath(path, ROOT) for path in opened if path.startswith(f"{ROOT}{os.sep}"))
    os.makedirs(str(FOLDER), exist_ok=True)
    name = str(STAGE).rpartition(":")[2]
    with open(os.path.join(str(FOLDER), f"{name}.{os.getpid()}"), "w", encoding="utf-8") as file:
        file.writelines(f"{path}\n" for path in inside)


if STAGE and FOLDER and ROOT:
    sys.addaudithook(note)
    atexit.register(write)
