# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""FP8 tiles in PyTorch: what every other backend is compared with, bit for bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from k2_megatron.kernels.fp8_tile.tiles import E4M3_MAX, MAX_INVERSE, TILE, Tiles, tiles_in_row


def quantise(x: Tensor) -> Tiles:
    """Make an FP8 copy of x [rows, cols]; see `dispatch.quantise`."""
    rows, cols = x.shape
    per_row = tiles_in_row(cols)
    wide = F.pad(x.to(torch.float32), (0, per_row * TILE - cols)).view(rows, per_row, TILE)
    amax = wide.abs().amax(-1, keepdim=True)
    # Python's number / tensor is a reciprocal and a product: two roundings.
    inverse = torch.full_like(amax, E4M3_MAX).div_(amax).clamp_(max=MAX_INVERSE)
    inverse.masked_fill_(amax == 0, 1.0)
    scales = inverse.reciprocal().view(rows, per_row)
    values = (wide * inverse).to(torch.float8_e4m3fn).view(rows, per_row * TILE)
    return Tiles(values=values[:, :cols].contiguous(), scales=scales)


def dequantise(tiles: Tiles, out: Tensor) -> None:
    """Write out [rows, cols]; see `dispatch.dequantise`."""
    cols = tiles.values.shape[1]
    scales = tiles.scales.repeat_interleave(TILE, dim=1)[:, :cols]
    out.copy_(tiles.values.to(torch.float32) * scales)
