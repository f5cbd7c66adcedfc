# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which rectangle of which matrix lies where in which file of a checkpoint. No torch here.

A matrix is named KIND/KEY: `weight/layers.3.router`, `momentum/layers.3.router`. Its rectangles
tile it: every element is there once, whatever the layout of the run that saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from k2_megatron.checkpoint.durable import write_text_durably
from k2_megatron.checkpoint.manifest import DamagedCheckpointError
from k2_megatron.errors import CheckpointError

INDEX_NAME = "index.json"
Range = tuple[int, int]
_PROBLEMS_SHOWN = 8


@dataclass(frozen=True)
class Part:
    """Rows and columns of a matrix that lie, row by row, from byte `offset` of file `file` on."""

    file: int
    offset: int
    rows: Range
    cols: Range


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """One matrix of a checkpoint. dtype: as PyTorch names it, e.g. `float32`."""

    rows: int
    cols: int
    dtype: str
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Index:
    """All matrices of a checkpoint by name, and the files that their parts count."""

    files: list[str]
    matrices: dict[str, Matrix]


def encode_index(index: Index) -> str:
    """The content of the file."""
    content = {
        "files": index.files,
        "matrices": {
            name: [
                matrix.rows,
                matrix.cols,
                matrix.dtype,
                [[part.file, part.offset, *part.rows, *part.cols] for part in matrix.parts],
            ]
            for name, matrix in index.matrices.items()
        },
    }
    return json.dumps(content, separators=(",", ":")) + "\n"


def write_index(path: Path, index: Index) -> None:
    """Write the index and sync it to the disk."""
    write_text_durably(path, encode_index(index))


def read_index(checkpoint: Path) -> Index:
    """Read the index of a checkpoint whose checksums have been verified.

    Raises:
        DamagedCheckpointError: it cannot be read.
    """
    path = checkpoint / INDEX_NAME
    try:
        content = json.loads(path.read_bytes())
        matrices = {
            name: Matrix(
                rows=rows,
                cols=cols,
                dtype=dtype,
                parts=[Part(p[0], p[1], (p[2], p[3]), (p[4], p[5])) for p in parts],
            )
            for name, (rows, cols, dtype, parts) in content["matrices"].items()
        }
        return Index(files=content["files"], matrices=matrices)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedCheckpointError(f"{path}: cannot be read: {error}") from error


def check_tiling(index: Index, what: str) -> None:
    """Check that every element of every matrix is there exactly once.

    Args:
        what: names the checkpoint in the error.

    Raises:
        CheckpointError: one is missing or there twice; names matrix, rows and columns.
    """
    problems = [
        f"{name} [{matrix.rows}, {matrix.cols}]: {flaw}"
        for name, matrix in index.matrices.items()
        if (flaw := tiling_flaw(matrix))
    ]
    _raise(problems, what)


def check_shapes(index: Index, shapes: Mapping[str, tuple[int, int]], what: str) -> None:
    """Check that the matrices are those expected, no more and no fewer, in their sizes.

    Raises:
        CheckpointError: they are not; lists names and sizes.
    """
    problems = []
    for name, (rows, cols) in shapes.items():
        found = index.matrices.get(name)
        if found is None:
            problems.append(f"{name} [{rows}, {cols}]: missing")
        elif (found.rows, found.cols) != (rows, cols):
            problems.append(f"{name}: [{found.rows}, {found.cols}] found, not [{rows}, {cols}]")
    problems += [f"{name}: not part of this run" for name in index.matrices if name not in shapes]
    _raise(problems, what)


def tiling_flaw(matrix: Matrix) -> str | None:
    """Say which element is missing or there twice; None where the parts tile the matrix."""
    if len(matrix.parts) == 1:
        (part,) = matrix.parts
        if (part.rows, part.cols) == ((0, matrix.rows), (0, matrix.cols)):
            return None
    edges = {0, matrix.rows}
    for part in matrix.parts:
        edges.update(part.rows)
        (top, bottom), (left, right) = part.rows, part.cols
        if not (0 <= top < bottom <= matrix.rows and 0 <= left < right <= matrix.cols):
            return f"rows {top}:{bottom}, columns {left}:{right} lie outside of it"
    cuts = sorted(edges)
    number = {edge: place for place, edge in enumerate(cuts)}
    bands: list[list[Range]] = [[] for _ in cuts[1:]]
    for part in matrix.parts:
        for band in range(number[part.rows[0]], number[part.rows[1]]):
            bands[band].append(part.cols)
    for place, found in enumerate(bands):
        flaw = _line_flaw(sorted(found), matrix.cols)
        if flaw:
            return f"rows {cuts[place]}:{cuts[place + 1]}, columns {flaw}"
    return None


def _line_flaw(ranges: Sequence[Range], size: int) -> str | None:
    """Say where sorted ranges leave a hole in [0, size) or overlap."""
    end = 0
    for begin, stop in [*ranges, (size, size)]:
        if begin > end:
            return f"{end}:{begin} are missing"
        if begin < end and stop > begin:
            return f"{begin}:{min(end, stop)} are there more than once"
        end = max(end, stop)
    return None


def _raise(problems: Iterable[str], what: str) -> None:
    found = list(problems)
    if not found:
        return
    shown = found[:_PROBLEMS_SHOWN]
    if len(found) > len(shown):
        shown.append(f"and {len(found) - len(shown)} more")
    raise CheckpointError("\n  ".join([f"{what}:", *shown]))
