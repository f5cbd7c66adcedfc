# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Put the rectangles of all ranks together to whole canonical matrices, checking on the way."""

from __future__ import annotations

from collections.abc import Iterable

import torch

Rectangle = tuple[str, tuple[int, int], tuple[int, int], torch.Tensor]


def assemble(
    ranks: Iterable[list[Rectangle]], shapes: dict[str, tuple[int, int]]
) -> dict[str, torch.Tensor]:
    """Every canonical matrix, from what all ranks hold.

    Raises:
        AssertionError: an element is held by nobody, or two ranks hold different values of it.
    """
    full = {key: torch.full(shape, torch.nan) for key, shape in shapes.items()}
    for rank, pieces in enumerate(ranks):
        for key, rows, cols, values in pieces:
            target = full[key][slice(*rows), slice(*cols)]
            known = ~torch.isnan(target)
            same = torch.equal(target[known], values[known])
            assert same, f"rank {rank} holds other values of {key} {rows} {cols}"
            target.copy_(values)
    missing = [key for key, matrix in full.items() if torch.isnan(matrix).any()]
    assert not missing, f"held by no rank: {missing}"
    return full
