"""Rows of .npy files, read by position instead of through memory maps.

Pages of a map that were read stay in the process's memory until the system is short of it: training on a million videos
would show as many gigabytes as it has read. What is read here is a copy, and costs about as much.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class ArrayFile:
    """A .npy file of two dimensions in C order, or `rows` rows of it from row `first` on.

    Pickles as its path. ValueError: another kind of array, or a file that is cut short; OSError: it cannot be read.
    """

    def __init__(self, path: Path | str, first: int = 0, rows: int | None = None):
        self.path, self.first = Path(path), first
        with self.path.open("rb") as file:
            shape, fortran, self.dtype = _header(file)
            self._start = file.tell()
            size = os.fstat(file.fileno()).st_size
        if fortran or len(shape) < 2 or self.dtype.hasobject:
            raise ValueError(f"{self.dtype} {list(shape)} is no table of numbers")
        if size != self._start + self.dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"{size} bytes are not those of {self.dtype} {list(shape)}")
        total = int(np.prod(shape[:-1], dtype=np.int64))  # [T, N, C] is read as [T * N, C]
        self.shape = (total - first if rows is None else rows, shape[-1])
        self._row_bytes = self.dtype.itemsize * shape[-1]
        self._file: int | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, start: int, count: int) -> npt.NDArray[Any]:
        """[count, columns] from row `start` on: a read-only copy."""
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        data = os.pread(self._file, count * self._row_bytes, self._start + (self.first + start) * self._row_bytes)
        return np.frombuffer(data, self.dtype).reshape(count, self.shape[1])

    def __getitem__(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        """[len(rows), columns], row by row; negative rows are not counted from the end."""
        found = np.empty((len(rows), self.shape[1]), self.dtype)
        for place, row in enumerate(rows.tolist()):
            found[place] = self.rows(row, 1)[0]
        return found

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # a worker process opens the file itself


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"npy version {version}")
