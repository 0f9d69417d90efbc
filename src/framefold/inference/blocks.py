"""Results under way, by blocks of consecutive rows: one file a block, which is there and whole or not there at all.

block-000012-<digest>.npy

The name carries the digest of the content, and the content is on the disk before the file has its name: neither a kill
nor a power cut leaves a block that counts and is not whole. Any process may write any block.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from framefold.errors import UserError
from framefold.inference.predict import BLOCK
from framefold.inference.processes import Processes
from framefold.scratch import Scratch
from framefold.seals import fits_its_name, named_by_digest
from framefold.storage import fingerprint_of

NAME = re.compile(r"block-(\d{6})-([0-9a-f]{32})\.npy")
log = logging.getLogger(__name__)


class BlockFolder:
    """Blocks of an array whose second last axis is `rows` long; a block has BLOCK rows, the last one may have fewer."""

    def __init__(self, folder: Path, rows: int):
        self.folder, self.rows, self.size = folder, rows, BLOCK

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def rows_of(self, number: int) -> npt.NDArray[np.int64]:
        return np.arange(number * self.size, min((number + 1) * self.size, self.rows))

    def open(self) -> list[int]:
        """Make the folder, drop what is damaged or half-written, and return the blocks that are missing.

        For the main process alone, before any other writes.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = set()
        for path in sorted(self.folder.iterdir()):
            match = NAME.fullmatch(path.name)
            if match and int(match[1]) not in whole and fits_its_name(path):
                whole.add(int(match[1]))
                continue
            if match:
                log.warning("%s: damaged block dropped", path)
            path.unlink(missing_ok=True)  # its writer may have outlived its start
        return [number for number in range(len(self)) if number not in whole]

    def write(self, number: int, block: npt.NDArray[Any]) -> None:
        """Store a block [..., rows, columns]. UserError: it cannot be written, or the folder is no longer there."""
        with named_by_digest(self.folder, f"block-{number:06d}", ".npy") as file:
            np.save(file, block, allow_pickle=False)  # type: ignore[call-overload]

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """All blocks in order. UserError: one is missing."""
        found = {int(match[1]): path for path in self.folder.glob("*.npy") if (match := NAME.fullmatch(path.name))}
        for number in range(len(self)):
            if number not in found:
                raise UserError(f"{self.folder}: block {number} is missing; run it again")
            yield np.load(found[number], allow_pickle=False)


def shared_folder(scratch: Scratch, processes: Processes) -> Path:
    """Where the processes of a start keep their blocks, once the main one has claimed `scratch`.

    A folder of its own for every fingerprint: a process that has outlived its start, and never held the lock, may still
    finish a block. If params, inputs or code have changed since, its folder is gone and the block with it.
    UserError: this process sees other params, inputs or code than the main one.
    """
    claimed = processes.main_first("claimed", lambda: scratch.fingerprint, scratch.guard)
    if claimed != scratch.fingerprint:
        changed = ", ".join(sorted(key for key in claimed if claimed[key] != scratch.fingerprint.get(key)))
        raise UserError(
            f"{processes.item}: process {processes.rank} has other {changed} than the main process; "
            "start all of them in the same project folder"
        )
    return scratch.folder / f"blocks-{fingerprint_of(claimed)}"
