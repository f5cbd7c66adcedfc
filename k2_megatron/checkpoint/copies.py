# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Elements that several ranks have must be the same everywhere: compared before one set is saved.

Sets of copies may be divided over their ranks at different places, so that they are compared by
sums over bits and positions, which do not depend on the division.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from k2_megatron.checkpoint.data_file import Holding, matrix_name
from k2_megatron.checkpoint.ranks import Ranks
from k2_megatron.errors import CheckpointError

# Odd 62-bit numbers; products and sums are modulo 2^64.
_POSITION, _BITS = 0x1B873593CC9E2D51, 0x2545F4914F6CDD1D
_BLOCK = 2**20
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Sums = dict[tuple[str, str], int]


def check_copies(
    holdings: Sequence[Holding], shapes: dict[str, tuple[int, int]], ranks: Ranks
) -> None:
    """Compare all sets of copies. Collective where any rank may have copies.

    Args:
        holdings: of this rank.
        shapes: (rows, columns) of each matrix by name.
        ranks: all ranks that save.

    Raises:
        CheckpointError: on every rank; names the matrices and the sets that differ.
    """
    totals: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for sums in ranks.share(_sums(holdings, shapes)):
        for (name, copy), value in sums.items():
            totals[name][copy] += value
    flaws = []
    for name, copies in totals.items():
        values = {copy: value % 2**64 for copy, value in copies.items()}
        if len(set(values.values())) > 1:
            rows, cols = shapes[name]
            sets = ", ".join(f"{copy}: {value:016x}" for copy, value in sorted(values.items()))
            flaws.append(f"{name} rows 0:{rows}, columns 0:{cols} ({sets})")
    if flaws:
        more = f" and {len(flaws) - 4} more" if len(flaws) > 4 else ""
        raise CheckpointError(
            "not saved: ranks that should have the same values have different ones of "
            + "; ".join(flaws[:4])
            + more
        )


def _sums(holdings: Iterable[Holding], shapes: dict[str, tuple[int, int]]) -> Sums:
    sums: Sums = defaultdict(int)
    for holding in holdings:
        if holding.copy_of is None:
            continue
        begin = 0
        for region in holding.regions:
            name = matrix_name(holding.kind, region.key)
            values = holding.values[begin : begin + region.size]
            begin += region.size
            width = region.cols[1] - region.cols[0]
            first = region.rows[0] * shapes[name][1] + region.cols[0]
            sums[name, holding.copy_of] += _sum(values, width, first, shapes[name][1])
    return dict(sums)


def _sum(values: torch.Tensor, width: int, first: int, num_cols: int) -> int:
    """Sum of a function of bits and position of a rectangle that begins at element `first`."""
    total = 0
    bits = values.view(_INTEGERS[values.itemsize])
    for begin in range(0, bits.numel(), _BLOCK):
        block = bits[begin : begin + _BLOCK].to(torch.int64)
        place = torch.arange(begin, begin + block.numel(), device=block.device)
        position = first + place // width * num_cols + place % width
        mixed = (block * _BITS + 1) * (position * _POSITION | 1)
        total += int((mixed ^ (mixed >> 29)).sum())
    return total
