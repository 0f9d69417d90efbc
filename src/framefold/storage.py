"""Reading and writing outputs: always aside first, then `os.replace`; the same content gives the same bytes."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from framefold.errors import UserError, disk_full, is_disk_full

ASIDE = re.compile(r"\.(?P<name>.+)\.(?P<host>[^.]+)-(?P<pid>\d+)(\.old)?\.aside")
ABANDONED = 24 * 3600  # seconds after which what another machine left aside counts as left behind


@contextlib.contextmanager
def write_aside(path: Path | str) -> Iterator[Path]:
    """Yield a sibling path to write a file to; it replaces `path` only when the block ends without an error.

    UserError: the disk is full. What a killed process has left aside for `path` is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_abandoned(path)
    aside = aside_of(path)
    try:
        yield aside
        os.replace(aside, path)
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(_without_asides(path)) from None
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder_aside(path: Path | str) -> Iterator[Path]:
    """The same for a folder: yield an empty sibling folder to fill."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_abandoned(path)
    aside = aside_of(path)
    try:
        aside.mkdir()
        yield aside
        _replace_folder(aside, path)
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(_without_asides(path)) from None
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace_folder(source: Path, target: Path) -> None:
    """Move the finished folder `source` to `target`; what stood there goes in one piece, so a kill leaves no half."""
    old = source.with_name(source.name.removesuffix(".aside") + ".old.aside")
    if target.is_dir():
        os.replace(target, old)
    os.replace(source, target)
    shutil.rmtree(old, ignore_errors=True)


def aside_of(path: Path) -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}.aside")


def _without_asides(path: Path) -> Path:
    """What the user knows `path` by: the output, not what is written aside for it."""
    return Path(*((match["name"] if (match := ASIDE.fullmatch(part)) else part) for part in path.parts))


def _host() -> str:
    return socket.gethostname().partition(".")[0]


def drop_abandoned(path: Path) -> None:
    """Remove what processes that were killed have left aside for `path`, and what an earlier one with this pid has."""
    for child in path.parent.glob(".*.aside"):
        match = ASIDE.fullmatch(child.name)
        if match and match["name"] == path.name and _is_abandoned(child, match["host"], int(match["pid"])):
            shutil.rmtree(child, ignore_errors=True) if child.is_dir() else child.unlink(missing_ok=True)


def _is_abandoned(aside: Path, host: str, pid: int) -> bool:
    """Whether nobody is at work on it: its process has gone, or it is another machine's and old."""
    if host == _host():
        return pid == os.getpid() or not _is_running(pid)
    try:
        return time.time() - aside.stat().st_mtime > ABANDONED
    except FileNotFoundError:  # its owner has just finished
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """The file under another name too: a hard link where there are such, which costs no room; else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def drop_unlisted(parent: Path | str, wanted: Iterable[object]) -> None:
    """Delete what `parent` holds and `wanted` does not name: a removed fold leaves no trace in a join."""
    names = {str(name) for name in wanted}
    for child in sorted(Path(parent).iterdir()) if Path(parent).is_dir() else []:
        if child.name not in names:
            shutil.rmtree(child) if child.is_dir() else child.unlink()


def read_json(path: Path | str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); rebuild it with `dvc repro`") from None


def write_json(path: Path | str, content: Any) -> None:
    """Keys sorted, floats as they are: the same content gives the same bytes."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_parquet(path: Path | str, table: pa.Table) -> None:
    with write_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd")


@contextlib.contextmanager
def parquet_writer(path: Path | str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """A streaming writer whose file appears only when complete."""
    with write_aside(path) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        yield writer


def iterate_parquet(
    path: Path | str, columns: list[str] | None = None, batch_size: int = 4096
) -> Iterator[pa.RecordBatch]:
    """Record batches in file order, without holding the file in memory."""
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # prefetching holds the whole file
            yield from file.iter_batches(batch_size=batch_size, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); rebuild it with `dvc repro`") from None


def count_rows(path: Path | str) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); rebuild it with `dvc repro`") from None


def read_parquet(path: Path | str, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error}); rebuild it with `dvc repro`") from None


def sha256_of(path: Path | str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(content: Mapping[str, Any]) -> str:
    """A short digest of JSON-able content (params, input digests), the same in every process."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
