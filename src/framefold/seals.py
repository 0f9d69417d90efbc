"""Finished work that a later run may trust: a digest of the content is written last.

A file or folder has its seal beside it, `<name>.seal`; a file that any of several processes may write has its digest
in its name. Neither a kill nor a power cut leaves anything that counts and is not whole, and damage is noticed.

>>> if not is_whole(path):
...     with sealed_folder(path) as aside:
...         ...                                        # write files into `aside`
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from framefold.errors import UserError, is_disk_full
from framefold.storage import aside_of, drop_abandoned, fingerprint_of, read_json, write_folder_aside, write_json

log = logging.getLogger(__name__)

SEAL = ".seal"  # holds the digest of the file or folder that it is named after
NAMED = re.compile(r".+-([0-9a-f]{32})\.\w+")


# Seals beside files and folders


@contextlib.contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """Yield `path` to write a file or folder to; it is finished when the block ends without an error."""
    seal_of(path).unlink(missing_ok=True)
    yield path
    seal(path)


@contextlib.contextmanager
def sealed_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `path`, and finished, when the block ends without an error."""
    with sealed(path), write_folder_aside(path) as aside:
        yield aside


def seal(path: Path, about: Any = None) -> None:
    """Say that what is written to `path` is finished. `about`: what its seal is to tell of it, JSON-able."""
    content = {"about": about, "digest": content_digest(path)}
    write_json(seal_of(path), content | {"own": fingerprint_of(content)})


def is_whole(path: Path) -> bool:
    """Whether `path` is finished and has the bytes that were written. A warning tells of damage; write it anew then.

    Nothing is deleted: another process may be writing it.
    """
    try:
        found = json.loads(seal_of(path).read_text(encoding="utf-8"))
        whole = found.pop("own") == fingerprint_of(found) and found["digest"] == content_digest(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        whole = False
    if not whole:
        log.warning("%s: damaged, so it is dropped and made again", path)
    return whole


def about(path: Path) -> Any:
    """What the seal of `path` tells of it."""
    return read_json(seal_of(path))["about"]


def seal_of(path: Path) -> Path:
    return path.with_name(path.name + SEAL)


def sealed_in(folder: Path) -> list[Path]:
    """What has a seal in `folder`, whole or not."""
    return [seal.with_name(seal.name.removesuffix(SEAL)) for seal in sorted(folder.glob(f"*{SEAL}"))]


def content_digest(path: Path) -> str:
    """Digest of all the bytes of a file or of a folder's files; of nothing if there is no such path."""
    files = sorted(child for child in path.rglob("*") if child.is_file()) if path.is_dir() else [path]
    digest = blake2b()
    for file in filter(Path.is_file, files):
        with file.open("rb") as opened:
            digest.update(file.relative_to(path.parent).as_posix().encode() + b"\0")
            digest.update(hashlib.file_digest(opened, "blake2b").digest())
    return digest.hexdigest()


# Files with their digest in their name


class Digesting:
    """A file to write to that keeps the digest of what went through it: no second pass over a large checkpoint."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest = file, blake2b()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


@contextlib.contextmanager
def named_by_digest(folder: Path, stem: str, suffix: str) -> Iterator[Digesting]:
    """Yield a file to write to; it becomes `<stem>-<digest><suffix>`, its content on the disk before it has the name.

    UserError: it cannot be written, or the folder is no longer there.
    """
    drop_abandoned(folder / stem)
    aside = aside_of(folder / stem)
    try:
        with aside.open("wb") as file:
            writer = Digesting(file)
            yield writer
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, folder / f"{stem}-{writer.digest.hexdigest()}{suffix}")
        sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch hides what the file said behind an error of its own
        if isinstance(error, RuntimeError) and not is_disk_full(error):
            raise
        why = os.strerror(errno.ENOSPC) if is_disk_full(error) else error
        raise UserError(f"{folder}: progress cannot be saved ({why}); free the disk and run again") from None
    finally:
        aside.unlink(missing_ok=True)


def fits_its_name(path: Path) -> bool:
    """Whether the digest in the file's name is that of its content."""
    match = NAMED.fullmatch(path.name)
    with path.open("rb") as file:
        return match is not None and hashlib.file_digest(file, blake2b).hexdigest() == match[1]


def sync_folder(folder: Path) -> None:
    """A new name is on the disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def blake2b() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=16)
