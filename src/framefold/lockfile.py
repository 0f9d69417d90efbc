"""dvc.lock after a kill: DVC writes it in place, so a `dvc` that is killed while it does leaves the beginning of one.

DVC then refuses to work, or does not know the stages behind. Nothing is lost: what ran is in its run-cache, from which
`dvc repro` takes all stages that the lock does not name.
"""

import contextlib
import fcntl
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from framefold.storage import write_aside

LOCK, BUSY = Path("dvc.lock"), Path(".dvc/tmp/lock")
STAGE = re.compile(r"^  \S.*:$", re.MULTILINE)  # the line with a stage's name
DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a lock has thousands of lines
log = logging.getLogger(__name__)


def mend_lock() -> None:
    """Cut a torn dvc.lock back to the stages that are whole. While a `dvc` is at work it is left alone."""
    with _dvc_at_rest() as at_rest:
        if not at_rest or not LOCK.is_file():
            return
        text = LOCK.read_text(encoding="utf-8", errors="replace")
        if is_whole(text):
            return
        kept = whole_part(text)
        log.warning("dvc.lock: cut short by a kill; DVC takes the stages that it has lost from its cache")
        if kept:
            with write_aside(LOCK) as aside:
                aside.write_text(kept, encoding="utf-8")
        else:
            LOCK.unlink()


def whole_part(text: str) -> str:
    """The longest beginning that ends with a whole stage; empty if there is none."""
    ends = [match.start() for match in STAGE.finditer(text)][1:]
    return next((text[:end] for end in reversed(ends) if is_whole(text[:end])), "")


def is_whole(text: str) -> bool:
    """Whether DVC can read it, and every file that it names has its digest."""
    if not text.endswith("\n"):
        return False
    try:
        content = yaml.load(text, LOADER)
    except yaml.YAMLError:
        return False
    stages = content.get("stages") if isinstance(content, dict) else None
    return isinstance(stages, dict) and content.get("schema") == "2.0" and all(map(_is_whole_stage, stages.values()))


def _is_whole_stage(stage: Any) -> bool:
    if not isinstance(stage, dict) or not stage.get("cmd") or not isinstance(stage.get("outs"), list):
        return False
    files = [*stage.get("deps", []), *stage["outs"]]
    return all(isinstance(file, dict) and file.get("path") and DIGEST.fullmatch(str(file.get("md5"))) for file in files)


@contextlib.contextmanager
def _dvc_at_rest() -> Iterator[bool]:
    """Hold DVC's own lock, as far as there is one yet; False while a `dvc` has it, and may be writing."""
    if not BUSY.is_file():
        yield True
        return
    with BUSY.open("r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
