# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From a flat shard to parts of logical matrices: integers only, no torch.

A data-parallel rank owns an interval of each flattened parameter, which may begin and end in the
middle of a row. Inside a parameter a logical matrix is a run of whole local rows, so the owned part
of it is one interval of the parameter, and at most three rectangles of the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from k2_megatron.parallel.geometry import ParameterGeometry
from k2_megatron.parallel.muonclip.rules import Assignment
from k2_megatron.parallel.rectangles import Rectangle, row_rectangles


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """The part of one logical matrix that one rank's shard of one parameter holds.

    Attributes:
        matrix: name of the logical matrix.
        begin, end: elements of the flattened local parameter.
        rectangles: (rows, columns) of the logical matrix, in the order of those elements.
    """

    matrix: str
    begin: int
    end: int
    rectangles: tuple[Rectangle, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.end - self.begin


def fragments(
    entry: ParameterGeometry, begin: int, end: int, assignment: Assignment
) -> Iterator[Fragment]:
    """The parts of logical matrices in elements [begin, end) of a flattened parameter."""
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
                end=stop,
                rectangles=tuple(
                    (
                        (rows[0] + to_row, rows[1] + to_row),
                        (cols[0] + piece.cols[0], cols[1] + piece.cols[0]),
                    )
                    for rows, cols in row_rectangles(start, stop, width)
                ),
            )
