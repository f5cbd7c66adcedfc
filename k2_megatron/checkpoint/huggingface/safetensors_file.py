# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""One safetensors file, read and written tensor by tensor.

The format is a little-endian length of 8 bytes, a JSON header, and the tensors' bytes end to end.
The package of that name writes a file from tensors that are all in memory; here one tensor is, so
that the size of a shard does not decide the memory an export needs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from k2_megatron.checkpoint.durable import sync_to_disk
from k2_megatron.errors import CheckpointError

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        dtype: the format's word for it, for example BF16; perhaps not one of `DTYPES`.
        begin, end: bytes from the start of the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own.

        Raises:
            CheckpointError: the file cannot be read or has become shorter.
        """
        buffer = torch.empty(self.end - self.begin, dtype=torch.uint8)
        try:
            with self.file.open("rb") as file:
                file.seek(self.begin)
                count = file.readinto(buffer.numpy().data)
        except OSError as error:
            raise CheckpointError(f"{self.file}: cannot be read: {error}") from error
        if count != len(buffer):
            raise CheckpointError(f"{self.file}: ends within tensor {self.name}")
        return buffer.view(DTYPES[self.dtype]).reshape(self.shape)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """What a file holds, by name; the file's size is checked against its header.

    Raises:
        CheckpointError: the file is missing, truncated or not a safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
                raise CheckpointError(f"{path}: {size} bytes; truncated, or not a safetensors file")
            header = json.loads(file.read(length))
            found = _tensors(path, header, _LENGTH_BYTES + length)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its safetensors header is damaged ({error!r})") from None
    expected = max((tensor.end for tensor in found.values()), default=_LENGTH_BYTES + length)
    if size != expected:
        raise CheckpointError(
            f"{path}: {size} bytes, its header says {expected}; truncated or damaged"
        )
    return found


def _tensors(path: Path, header: dict[str, Any], start: int) -> dict[str, StoredTensor]:
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        tensor = StoredTensor(
            file=path,
            name=name,
            dtype=str(entry["dtype"]),
            shape=tuple(int(size) for size in entry["shape"]),
            begin=start + begin,
            end=start + end,
        )
        if tensor.dtype in DTYPES:
            size = DTYPES[tensor.dtype].itemsize
            for extent in tensor.shape:
                size *= extent
            if size != end - begin:
                raise ValueError(f"{name} has {end - begin} bytes in place of {size}")
        found[name] = tensor
    return found


@dataclass(frozen=True, kw_only=True)
class NewTensor:
    """A tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of its elements."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


def write_file(
    path: Path, tensors: Sequence[NewTensor], read: Callable[[str], torch.Tensor]
) -> tuple[int, str]:
    """Write a file durably: aside first, then under its name. One tensor is in memory at a time.

    Args:
        read: gives the tensor of a name; it is cast to the dtype asked for.

    Returns:
        The file's size in bytes and its sha256.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        header[tensor.name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the tensors begin aligned
    digest = hashlib.sha256()
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for part in (len(text).to_bytes(_LENGTH_BYTES, "little"), text):
            file.write(part)
            digest.update(part)
        for tensor in tensors:
            value = read(tensor.name)
            assert tuple(value.shape) == tensor.shape, tensor.name
            flat = value.to(tensor.dtype).contiguous().reshape(-1)
            data = flat.view(torch.uint8).numpy().data
            file.write(data)
            digest.update(data)
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_to_disk(path.parent)
    return size, digest.hexdigest()
