# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Find the input files in a fixed order and read them record by record, in bounded memory."""

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from k2_megatron.errors import DataError

JSONL_SUFFIXES = (".jsonl", ".ndjson")
DEFAULT_SUFFIXES = (".txt", ".md", *JSONL_SUFFIXES)
# Read as text these would fail with a riddle, or worse pass.
UNREADABLE_SUFFIXES = frozenset(
    {".arrow", ".bin", ".bz2", ".idx", ".json", ".npy", ".parquet", ".tar", ".xz", ".zip", ".zst"}
)
_UTF8_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SourceFile:
    """One input file: text is one document, JSONL is one document a line; `.gz` is unpacked."""

    path: Path
    is_jsonl: bool
    is_gzip: bool


@dataclass(frozen=True)
class Record:
    """The raw bytes of one document, and where they stand."""

    path: str
    line: int | None
    """Line number from 1 in a JSONL file; None for a text file."""
    data: bytes
    position: int
    """Bytes of the file read so far, before unpacking: for the progress report only."""

    @property
    def where(self) -> str:
        """The record's place, as error messages name it."""
        return self.path if self.line is None else f"{self.path}, line {self.line}"


def find_files(
    inputs: Sequence[str | Path], suffixes: Sequence[str] = DEFAULT_SUFFIXES
) -> tuple[SourceFile, ...]:
    """List the files of the inputs, folders walked recursively in sorted order.

    Args:
        inputs: Files and folders. A file is taken whatever its suffix, if it can be read at all.
        suffixes: Which files of a folder are taken; the same with `.gz` added are taken too.

    Raises:
        DataError: Missing input, folder without such files, a file twice, an unreadable format.
    """
    for suffix in suffixes:
        if not suffix.startswith(".") or suffix in UNREADABLE_SUFFIXES:
            raise DataError(
                f"suffix {suffix!r}; allowed: one that starts with a dot, and none of"
                f" {', '.join(sorted(UNREADABLE_SUFFIXES))}"
            )
    paths: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = sorted(_walk(path, tuple(suffixes), ()), key=lambda p: os.fsencode(p))
            if not found:
                raise DataError(f"{path}: no file in this folder ends in {', '.join(suffixes)}")
            paths += found
        elif path.exists():
            paths.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    seen: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise DataError(
                f"{path}: the same file is given twice (also as {seen[real]}); to repeat data,"
                " prepare it once and give its corpus a higher weight"
            )
        seen[real] = path
    return tuple(_classify(path) for path in paths)


def _walk(folder: Path, suffixes: tuple[str, ...], above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{folder}: this link leads back to {real}, a folder above it")
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir():
            yield from _walk(Path(entry.path), suffixes, (*above, real))
        elif entry.name.removesuffix(".gz").endswith(suffixes):
            yield Path(entry.path)


def _classify(path: Path) -> SourceFile:
    inner = path.name.removesuffix(".gz")
    suffix = Path(inner).suffix
    if suffix in UNREADABLE_SUFFIXES:
        hint = "; name it .jsonl if it holds one object a line" if suffix == ".json" else ""
        raise DataError(
            f"{path}: {suffix} files cannot be read; allowed: text, and JSONL"
            f" ({', '.join(JSONL_SUFFIXES)}), each also with .gz{hint}"
        )
    return SourceFile(path, suffix in JSONL_SUFFIXES, path.name.endswith(".gz"))


def read_records(file: SourceFile) -> Iterator[Record]:
    """Yield the records of one file; a document is held in memory whole, a file is not.

    Raises:
        DataError: The file cannot be read, or its gzip data is damaged.
    """
    name = str(file.path)
    line = 0
    try:
        with open(file.path, "rb") as raw, _unpacked(raw, file.is_gzip) as stream:
            if not file.is_jsonl:
                yield Record(name, None, stream.read().removeprefix(_UTF8_MARK), raw.tell())
                return
            for data in stream:
                line += 1
                content = data.removeprefix(_UTF8_MARK) if line == 1 else data
                yield Record(name, line, content, raw.tell())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        after = f" after line {line}" if file.is_jsonl else ""
        raise DataError(f"{name}: gzip data truncated or damaged{after} ({error})") from error
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error


def _unpacked(raw: IO[bytes], is_gzip: bool) -> IO[bytes]:
    return gzip.GzipFile(fileobj=raw, mode="rb") if is_gzip else raw  # type: ignore[return-value]
