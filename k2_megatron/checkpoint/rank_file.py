# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""One rank's file: its checksum is taken on the way to the disk; it is read back as plain data."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

from k2_megatron.checkpoint.manifest import DamagedCheckpointError, FileEntry

_PLAIN = (int, float, bool, str, bytes, type(None), torch.dtype, torch.Tensor, torch.nn.Parameter)


class _HashingFile:
    """What torch.save writes into: passes the bytes on, and counts and hashes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._size_bytes = 0
        self.failure: OSError | None = None

    def write(self, data: memoryview) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self._sha256.update(data)
        self._size_bytes += data.nbytes
        return data.nbytes

    def flush(self) -> None:
        self._file.flush()

    def entry(self) -> FileEntry:
        return FileEntry(size_bytes=self._size_bytes, sha256=self._sha256.hexdigest())


def write_rank_file(path: Path, payload: Mapping[str, Any]) -> FileEntry:
    """Write `payload` to `path`, sync it, and return its size and the sha256 of what was written.

    A tensor that is a view brings its whole storage along, as torch.save does: clone it first.

    Args:
        path: the file; its folder exists.
        payload: dicts, lists and tuples of tensors, numbers, strings, bytes, dtypes and None.

    Raises:
        TypeError: the payload holds something that could not be loaded again.
        OSError: the disk refused the bytes.
    """
    _require_plain(payload, "payload")
    try:
        return _write(path, payload)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _write(path: Path, payload: Mapping[str, Any]) -> FileEntry:
    with path.open("wb") as file:
        hashing = _HashingFile(file)
        try:
            torch.save(dict(payload), hashing)  # type: ignore[arg-type]
        except RuntimeError:
            # torch's zip writer, closing after a failed write, hides the disk's own error.
            if hashing.failure is not None:
                raise hashing.failure from None
            raise
        file.flush()
        os.fsync(file.fileno())
    return hashing.entry()


def read_rank_file(path: Path) -> dict[str, Any]:
    """Read what `write_rank_file` wrote, tensors on the CPU; runs no code from the file.

    Raises:
        DamagedCheckpointError: the file cannot be read.
    """
    try:
        payload: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise DamagedCheckpointError(f"{path}: cannot be read: {error}") from error
    return payload


def _require_plain(value: Any, where: str) -> None:
    """Refuse, before anything is written, what torch.load(weights_only=True) would refuse later.

    Exact types: a numpy float is a float to isinstance and a foreign object to the loader.
    """
    if type(value) is dict:
        for key, item in value.items():
            _require_plain(key, f"a key of {where}")
            _require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif type(value) not in _PLAIN:
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint holds "
            "dicts, lists and tuples of tensors, numbers, strings, bytes, dtypes and None"
        )
