"""Reading and writing outputs: always aside first, then `os.replace`; the same content gives the same bytes."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from framefold.errors import UserError


@contextlib.contextmanager
def write_aside(path: Path | str) -> Iterator[Path]:
    """Yield a sibling path to write a file to; it replaces `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def write_folder_aside(path: Path | str) -> Iterator[Path]:
    """Yield an empty sibling folder to fill; it replaces `path` only when the block ends without an error."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        replace_folder(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Move the finished folder `source` to `target`, dropping what stood there."""
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


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
