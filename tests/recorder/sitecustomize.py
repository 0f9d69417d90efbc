"""Notes what a stage opens and imports: python runs this module at start-up when its folder is on PYTHONPATH.

One file per process below $RECORD_OPENED, named after the stage item; paths relative to the project. Files that native
code opens by itself (Parquet, safetensors) are not seen. $RECORD_OPENED.seconds holds how long each process ran.
"""

import atexit
import os
import sys
import time

STARTED = time.monotonic()
STAGE, FOLDER, ROOT = (os.environ.get(name) for name in ("DVC_STAGE", "RECORD_OPENED", "DVC_ROOT"))
opened: set[str] = set()


def note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str | os.PathLike):
        opened.add(os.path.abspath(os.fspath(arguments[0])))


def write() -> None:
    opened.update(path for module in list(sys.modules.values()) if (path := getattr(module, "__file__", None)))
    inside = sorted(os.path.relpath(path, ROOT) for path in opened if path.startswith(f"{ROOT}{os.sep}"))
    keep(str(FOLDER), "".join(f"{path}\n" for path in inside))
    keep(f"{FOLDER}.seconds", str(time.monotonic() - STARTED))


def keep(folder: str, text: str) -> None:
    os.makedirs(folder, exist_ok=True)
    name = str(STAGE).rpartition(":")[2]
    with open(os.path.join(folder, f"{name}.{os.getpid()}"), "w", encoding="utf-8") as file:
        file.write(text)


if STAGE and FOLDER and ROOT:
    sys.addaudithook(note)
    atexit.register(write)
