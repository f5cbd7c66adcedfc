# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The .idx file of megatron's IndexedDataset: written in bounded memory, read with every check.

Layout, little-endian: 9 bytes of magic, u64 version, u8 dtype code, u64 number of sequences, u64
number of document bounds; then int32 lengths in tokens, int64 byte offsets into the .bin file, and
int64 document bounds. One document is one sequence here. megatron's own builder keeps Python lists
of all documents (some 100 bytes each); this one needs 4 bytes each and no torch.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from k2_megatron.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES = {"int32": 4, "uint16": 8}
_CHUNK = 1 << 20


def token_dtype(vocab_size: int) -> str:
    """Return "uint16" or "int32", by the rule of megatron's `DType.optimal_dtype`."""
    return "uint16" if vocab_size < 65_500 else "int32"


@dataclass(frozen=True, kw_only=True)
class IndexHeader:
    """What an .idx file says of its corpus: token dtype, documents, and bytes of the .bin file."""

    dtype: str
    num_documents: int
    bin_bytes: int


def index_bytes(num_documents: int) -> int:
    """Return the size of an .idx file with so many documents."""
    return HEADER.size + num_documents * (4 + 8) + (num_documents + 1) * 8


def write_index(path: Path, dtype: str, lengths: NDArray[np.int32]) -> str:
    """Write an .idx file and return its sha256 (hex).

    Args:
        path: The file to write.
        dtype: Token dtype in the .bin file, "uint16" or "int32".
        lengths: Tokens per document, [num_documents].
    """
    digest = hashlib.sha256()
    count = len(lengths)
    with open(path, "wb") as stream:

        def put(data: bytes) -> None:
            stream.write(data)
            digest.update(data)

        put(HEADER.pack(MAGIC, VERSION, DTYPE_CODES[dtype], count, count + 1))
        for start in range(0, count, _CHUNK):
            put(lengths[start : start + _CHUNK].astype("<i4").tobytes())
        offset = 0
        for start in range(0, count, _CHUNK):
            sizes = lengths[start : start + _CHUNK].astype("<i8") * np.dtype(dtype).itemsize
            ends = offset + np.cumsum(sizes)
            put((ends - sizes).astype("<i8").tobytes())
            offset = int(ends[-1])
        for start in range(0, count + 1, _CHUNK):
            put(np.arange(start, min(start + _CHUNK, count + 1), dtype="<i8").tobytes())
    return digest.hexdigest()


def read_index_header(path: Path) -> IndexHeader:
    """Read and check an .idx file's header, size and last entry; reads under 100 bytes.

    Raises:
        DataError: Not an .idx file, another version or dtype, or cut short.
    """
    with open(path, "rb") as stream:
        head = stream.read(HEADER.size)
        if len(head) < HEADER.size:
            raise DataError(f"{path}: {len(head)} bytes, too short for an index; prepare it again")
        magic, version, code, count, bounds = HEADER.unpack(head)
        if magic != MAGIC:
            raise DataError(
                f"{path}: starts with {magic!r}, an index of megatron's format with {MAGIC!r}"
            )
        if version != VERSION:
            raise DataError(f"{path}: index version {version}; allowed: {VERSION}")
        dtypes = {number: name for name, number in DTYPE_CODES.items()}
        if code not in dtypes:
            raise DataError(f"{path}: token dtype code {code}; allowed: {sorted(dtypes)}")
        if bounds != count + 1:
            raise DataError(
                f"{path}: {count} sequences in {bounds - 1} documents; allowed: one sequence a"
                " document, as `k2-megatron data prepare` writes"
            )
        size = path.stat().st_size
        if size != index_bytes(count):
            raise DataError(
                f"{path}: {size} bytes, but an index of {count} documents has"
                f" {index_bytes(count)}: the file is truncated or damaged"
            )
        bin_bytes = 0
        if count:
            stream.seek(HEADER.size + (count - 1) * 4)
            (length,) = struct.unpack("<i", stream.read(4))
            stream.seek(HEADER.size + count * 4 + (count - 1) * 8)
            (offset,) = struct.unpack("<q", stream.read(8))
            bin_bytes = offset + length * np.dtype(dtypes[code]).itemsize
    return IndexHeader(dtype=dtypes[code], num_documents=count, bin_bytes=bin_bytes)


def map_lengths(path: Path, num_documents: int) -> NDArray[np.int32]:
    """Return the lengths in tokens, [num_documents], mapped from the file and not copied."""
    lengths: NDArray[np.int32] = np.memmap(
        path, dtype="<i4", mode="r", offset=HEADER.size, shape=(num_documents,)
    )
    return lengths
