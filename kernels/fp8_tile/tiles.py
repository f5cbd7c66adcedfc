# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What an FP8 copy of an activation is: E4M3 values in tiles of 1 x 128, one fp32 scale each.

Storage only, as DeepSeek-V3 (arXiv 2412.19437, section 3.3) and Kimi K2 (arXiv 2507.20534,
section 2.4.3) keep activations: nothing is multiplied in FP8.

A tile's scale is amax / 448, in these steps of fp32, one rounding each (Transformer Engine's block
quantiser takes the same):

    inverse = min(448 / amax, 2^126)     1 where amax is 0
    value   = E4M3(x * inverse)          to nearest, ties to even
    scale   = 1 / inverse

The bound keeps scales of amax below 5e-36 from becoming subnormal, which a GPU may flush to zero.

Nothing that is not finite is hidden: where amax is Inf or NaN, all 128 numbers of the tile come
back NaN (Inf makes inverse 0 and the scale Inf, and 0 * Inf is NaN). A step that sees one is then
skipped as it would have been without the copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 128
E4M3_MAX = 448.0
MAX_INVERSE = 2.0**126


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """An FP8 copy of a matrix; the last tile of a row may be partial.

    Attributes:
        values: float8_e4m3fn [rows, cols], contiguous.
        scales: fp32 [rows, ceil(cols / 128)], contiguous; a number is values * scales.
    """

    values: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both tensors."""
        return self.values.nbytes + self.scales.nbytes


def tiles_in_row(cols: int) -> int:
    """Tiles of a row of `cols` numbers."""
    return -(-cols // TILE)


def empty_tiles(x: Tensor) -> Tiles:
    """Make room for an FP8 copy of x [rows, cols]."""
    rows, cols = x.shape
    return Tiles(
        values=torch.empty(rows, cols, dtype=torch.float8_e4m3fn, device=x.device),
        scales=torch.empty(rows, tiles_in_row(cols), dtype=torch.float32, device=x.device),
    )
