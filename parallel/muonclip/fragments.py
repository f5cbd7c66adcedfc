# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From a flat shard to parts of logical matrices: integers only, no torch.

A data-parallel rank owns an interval of each flattened parameter, which may begin and end in the
middle of a row. A logical matrix is a run of whole local rows of it, or one such run for every
attention head, at equal distances: content and rotary rows alternate in q_up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from k2_megatron.parallel.geometry import ParameterGeometry
from k2_megatron.parallel.muonclip.rules import Assignment
from k2_megatron.parallel.rectangles import Rectangle, row_rectangles


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A part of one logical matrix that one rank's shard of one parameter holds.

    Attributes:
        matrix: name of the logical matrix.
        begin: first element of the flattened local parameter.
        length: elements of a run; run i begins at begin + i step.
        count, step: number of runs and their distance. More than one are whole rows each, which
            follow each other in the logical matrix.
        rectangles: (rows, columns) of the logical matrix, in the order of the elements.
    """

    matrix: str
    begin: int
    length: int
    count: int = 1
    step: int = 0
    rectangles: tuple[Rectangle, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.length * self.count


def fragments(
    entry: ParameterGeometry, begin: int, end: int, assignment: Assignment
) -> list[Fragment]:
    """The parts of logical matrices in elements [begin, end) of a flattened parameter."""
    found: list[Fragment] = []
    latest: dict[str, int] = {}
    for run in _runs(entry, begin, end, assignment):
        index = latest.get(run.matrix)
        joined = None if index is None else _joined(found[index], run, entry.shape[1])
        if index is None or joined is None:
            latest[run.matrix] = len(found)
            found.append(run)
        else:
            found[index] = joined
    return found


def _joined(one: Fragment, run: Fragment, width: int) -> Fragment | None:
    """Both together where `run` goes on as `one` does, in elements and in rows of the matrix."""
    step = one.step if one.count > 1 else run.begin - one.begin
    ((rows, cols), *ragged), ((next_rows, next_cols), *next_ragged) = one.rectangles, run.rectangles
    if (
        ragged
        or next_ragged
        or run.length != one.length
        or run.begin != one.begin + one.count * step
        or next_rows[0] != rows[1]
        or cols != next_cols
        or cols[1] - cols[0] != width
    ):
        return None
    rectangle = ((rows[0], next_rows[1]), cols)
    return replace(one, count=one.count + 1, step=step, rectangles=(rectangle,))


def _runs(
    entry: ParameterGeometry, begin: int, end: int, assignment: Assignment
) -> Iterator[Fragment]:
    """One fragment for each block of whole rows that the interval meets, in order."""
    width = entry.shape[1]
    for piece in entry.pieces:
        assert piece.local_cols == (0, width), f"{entry.name} holds a column range of {piece.key}"
        for block in assignment.blocks.get(piece.key, ()):
            first, last = max(piece.rows[0], block.begin), min(piece.rows[1], block.end)
            local_row = piece.local_rows[0] + first - piece.rows[0]
            start = max(begin, local_row * width)
            stop = min(end, (local_row + last - first) * width)
            if start >= stop:
                continue
            to_row = block.row + first - block.begin - local_row
            yield Fragment(
                matrix=block.matrix,
                begin=start,
                length=stop - start,
                rectangles=tuple(
                    (
                        (rows[0] + to_row, rows[1] + to_row),
                        (cols[0] + piece.cols[0], cols[1] + piece.cols[0]),
                    )
                    for rows, cols in row_rectangles(start, stop, width)
                ),
            )
