# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The file of parts of matrices that one rank writes: nothing but their elements, row by row.

Where each part begins is a matter of the index. The checksum is taken on the way to the disk.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from k2_megatron.checkpoint.index import Matrix, Part
from k2_megatron.checkpoint.manifest import DamagedCheckpointError, FileEntry
from k2_megatron.offload.pages import locked_memory, unlock
from k2_megatron.parallel.model_space import Region

ALIGNMENT = 64
WINDOW_BYTES = 64 * 2**20
_OPEN_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Holding:
    """Elements that this rank has in its memory.

    Attributes:
        kind: what they are of a matrix: `weight`, `momentum`, `exp_avg`, `exp_avg_sq`.
        regions: the rectangles they are, in the order of `values`.
        values: contiguous [n], on any device.
        copy_of: None where no other rank has these elements; else names the set of ranks that has
            each of them once. Sets are compared before a save.
        is_written: this rank writes them; of several sets of copies one is written.
    """

    kind: str
    regions: tuple[Region, ...]
    values: torch.Tensor
    copy_of: str | None = None
    is_written: bool = True


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """Where in its file a rank's holdings begin. size_bytes: of the file."""

    offsets: tuple[int, ...]
    size_bytes: int


def matrix_name(kind: str, key: str) -> str:
    """The name of a matrix in the index."""
    return f"{kind}/{key}"


def plan_file(holdings: Sequence[Holding]) -> FilePlan:
    """Put holdings one behind the other, each at a multiple of 64 bytes."""
    offsets, end = [], 0
    for holding in holdings:
        offsets.append(end)
        end += -(-holding.values.nbytes // ALIGNMENT) * ALIGNMENT
    return FilePlan(offsets=tuple(offsets), size_bytes=end)


def parts_of(
    holdings: Sequence[Holding], plan: FilePlan, file: int
) -> Iterator[tuple[str, str, Part]]:
    """Name, dtype and place of every rectangle of a file."""
    for holding, begin in zip(holdings, plan.offsets, strict=True):
        dtype = str(holding.values.dtype).removeprefix("torch.")
        offset = begin
        for region in holding.regions:
            name = matrix_name(holding.kind, region.key)
            yield name, dtype, Part(file, offset, region.rows, region.cols)
            offset += region.size * holding.values.itemsize
        assert offset == begin + holding.values.nbytes, holding.kind


def stream(holdings: Sequence[Holding], plan: FilePlan) -> Iterator[memoryview]:
    """The bytes of the file in pieces; of a GPU's memory one piece at a time is on the host."""
    ends = (*plan.offsets[1:], plan.size_bytes)
    for holding, begin, end in zip(holdings, plan.offsets, ends, strict=True):
        values = holding.values.view(torch.uint8)
        for start in range(0, values.numel(), WINDOW_BYTES):
            yield values[start : start + WINDOW_BYTES].cpu().numpy().data
        yield memoryview(bytes(end - begin - values.numel()))


class Staging:
    """Host memory for the bytes of one save, kept for the next one; no more than they are."""

    def __init__(self, *, pinned: bool) -> None:
        """Allocate nothing yet. pinned: page-locked, so that a GPU fills it at full speed."""
        self._pinned = pinned
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._unlock: Callable[[], object] = lambda: None

    def reserve(self, nbytes: int) -> None:
        """Have that much memory from now on.

        Raises:
            RuntimeError: it cannot be locked.
        """
        if self._buffer.numel() < nbytes:
            self._allocate(nbytes)

    def fill(self, holdings: Sequence[Holding], plan: FilePlan) -> Iterator[memoryview]:
        """Copy the holdings; when this returns they may change. Gives the file's bytes."""
        self.reserve(plan.size_bytes)
        for holding, begin in zip(holdings, plan.offsets, strict=True):
            values = holding.values.view(torch.uint8)
            target = self._buffer[begin : begin + values.numel()]
            target.copy_(values, non_blocking=self._pinned)
        if self._pinned:
            torch.accelerator.current_stream().synchronize()
        whole = self._buffer.numpy().data[: plan.size_bytes]
        return (whole[start : start + WINDOW_BYTES] for start in range(0, len(whole), WINDOW_BYTES))

    def _allocate(self, nbytes: int) -> None:
        self._unlock()
        self._buffer = torch.empty(0, dtype=torch.uint8)  # free it before the larger one
        if not self._pinned:
            self._buffer = torch.zeros(nbytes, dtype=torch.uint8)
            return
        self._buffer = locked_memory(nbytes)
        finalizer = weakref.finalize(self, unlock, self._buffer)
        finalizer.atexit = False  # then the pages go with the process
        self._unlock = finalizer


def write_data_file(path: Path, pieces: Iterable[memoryview]) -> FileEntry:
    """Write `pieces` to `path`, sync it, and return its size and the sha256 of what was written.

    Raises:
        OSError: the disk refused the bytes; it names the file.
    """
    sha256, size_bytes = hashlib.sha256(), 0
    try:
        with path.open("wb", buffering=0) as file:
            for piece in pieces:
                rest = piece
                while len(rest):
                    rest = rest[file.write(rest) :]
                sha256.update(piece)
                size_bytes += len(piece)
            os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    return FileEntry(size_bytes=size_bytes, sha256=sha256.hexdigest())


class DataReader:
    """Reads rectangles out of the files of a checkpoint whose checksums have been verified."""

    def __init__(self, checkpoint: Path, files: Sequence[str]) -> None:
        """Open nothing yet; `files` are those that the index counts."""
        self._folder, self._files = checkpoint, files
        self._open: dict[int, int] = {}

    def __enter__(self) -> DataReader:
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def read(self, matrix: Matrix, region: Region, out: torch.Tensor) -> None:
        """Fill `out` with a rectangle of a matrix that the parts tile.

        Args:
            matrix: from the index.
            region: the rectangle.
            out: [rows, columns] of the rectangle, on any device and of any dtype.

        Raises:
            DamagedCheckpointError: a file cannot be read.
        """
        for part in matrix.parts:
            top, bottom = max(part.rows[0], region.rows[0]), min(part.rows[1], region.rows[1])
            left, right = max(part.cols[0], region.cols[0]), min(part.cols[1], region.cols[1])
            if top >= bottom or left >= right:
                continue
            width = part.cols[1] - part.cols[0]
            dtype: torch.dtype = getattr(torch, matrix.dtype)
            rows_at_once = max(1, WINDOW_BYTES // (width * dtype.itemsize))
            for row in range(top, bottom, rows_at_once):
                stop = min(bottom, row + rows_at_once)
                offset = part.offset + (row - part.rows[0]) * width * dtype.itemsize
                data = self._bytes(part.file, offset, (stop - row) * width * dtype.itemsize)
                rows = data.view(dtype).view(stop - row, width)
                out[
                    row - region.rows[0] : stop - region.rows[0],
                    left - region.cols[0] : right - region.cols[0],
                ].copy_(rows[:, left - part.cols[0] : right - part.cols[0]])

    def _bytes(self, file: int, offset: int, size: int) -> torch.Tensor:
        path = self._folder / self._files[file]
        data = torch.empty(size, dtype=torch.uint8)
        view, done = data.numpy().data, 0
        try:
            while done < size:
                count = os.preadv(self._descriptor(file), [view[done:]], offset + done)
                if count == 0:
                    raise DamagedCheckpointError(f"{path}: ends at byte {offset + done}")
                done += count
        except OSError as error:
            raise DamagedCheckpointError(f"{path}: cannot be read: {error}") from error
        return data

    def _descriptor(self, file: int) -> int:
        """An open file; the one opened first makes room."""
        if file not in self._open:
            if len(self._open) >= _OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[file] = os.open(self._folder / self._files[file], os.O_RDONLY)
        return self._open[file]
