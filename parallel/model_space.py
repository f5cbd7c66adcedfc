# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where the elements of a flat shard lie in canonical matrices: integers only, no torch.

A data-parallel rank owns an interval of each flattened parameter. A parameter is canonical blocks
of whole local rows under each other, so that the owned part of each block is at most three
rectangles of a canonical matrix, whose elements follow each other in the shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from k2_megatron.parallel.geometry import ParameterGeometry, Range
from k2_megatron.parallel.rectangles import row_rectangles


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of the matrix `key`; ranges are half open."""

    key: str
    rows: Range
    cols: Range

    @property
    def size(self) -> int:
        """Number of elements."""
        return (self.rows[1] - self.rows[0]) * (self.cols[1] - self.cols[0])


def regions(entry: ParameterGeometry, begin: int, end: int) -> Iterator[Region]:
    """The rectangles that are elements [begin, end) of a flattened parameter, in their order."""
    width, done = entry.shape[1], begin
    for piece in entry.pieces:
        assert piece.local_cols == (0, width), f"{entry.name} holds a column range of {piece.key}"
        top, bottom = piece.local_rows
        start, stop = max(begin, top * width), min(end, bottom * width)
        if start >= stop:
            continue
        assert start == done, f"{entry.name}: its blocks do not follow each other"
        to_row = piece.rows[0] - top
        for rows, cols in row_rectangles(start, stop, width):
            yield Region(
                key=piece.key,
                rows=(rows[0] + to_row, rows[1] + to_row),
                cols=(cols[0] + piece.cols[0], cols[1] + piece.cols[0]),
            )
        done = stop
    assert done == end, f"{entry.name}: elements from {done} to {end} belong to no matrix"
