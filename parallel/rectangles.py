# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""An interval of a flattened matrix as rectangles of the matrix: integers only, no torch."""

from __future__ import annotations

from collections.abc import Iterator

from k2_megatron.parallel.geometry import Range

Rectangle = tuple[Range, Range]


def row_rectangles(begin: int, end: int, width: int) -> Iterator[Rectangle]:
    """Cut elements [begin, end) of a matrix of `width` columns into rectangles, in order.

    A part of the first row, whole rows, a part of the last row; each where there is one.
    """
    row, col = divmod(begin, width)
    if col:
        stop = min(width, col + end - begin)
        yield (row, row + 1), (col, stop)
        begin, row = row * width + stop, row + 1
    whole = (end - begin) // width
    if whole > 0:
        yield (row, row + whole), (0, width)
        begin, row = begin + whole * width, row + whole
    if begin < end:
        yield (row, row + 1), (0, end - begin)


def area(rectangle: Rectangle) -> int:
    """Elements of a rectangle."""
    (top, bottom), (left, right) = rectangle
    return (bottom - top) * (right - left)
