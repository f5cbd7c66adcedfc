# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="untyped-decorator"
"""FP8 tiles in Triton: one pass over memory each way, bit for bit what reference.py gives.

A program takes a few tiles, one row of its block each. Where a row is a whole number of tiles, they
lie one behind the other over the whole matrix; else a tile's row is found by a division.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from k2_megatron.kernels.fp8_tile.tiles import E4M3_MAX, MAX_INVERSE, TILE, Tiles, empty_tiles

TILES = 32
WARPS = 4

_TILE = tl.constexpr(TILE)
_E4M3_MAX = tl.constexpr(E4M3_MAX)
_MAX_INVERSE = tl.constexpr(MAX_INVERSE)


def quantise(x: Tensor) -> Tiles:
    """Make an FP8 copy of x [rows, cols]; see `dispatch.quantise`."""
    tiles = empty_tiles(x)
    _launch(_quantise, x, tiles)
    return tiles


def dequantise(tiles: Tiles, out: Tensor) -> None:
    """Write out [rows, cols]; see `dispatch.dequantise`."""
    _launch(_dequantise, out, tiles)


def at_once(wide: Tensor) -> int:
    """Elements that a thread takes of a row: 16 bytes of the wider type.

    Left to itself Triton takes 16 of the FP8 numbers too, and what comes of them then changes hands
    through shared memory to meet the wider ones.
    """
    return 16 // wide.element_size()


def _launch(kernel: triton.runtime.JITFunction, wide: Tensor, tiles: Tiles) -> None:
    count, cols = tiles.scales.numel(), wide.shape[1]
    if count == 0:
        return
    # Triton launches on the current device, whatever device the tensors are on.
    with torch.cuda.device(wide.get_device()):
        kernel[(triton.cdiv(count, TILES),)](
            wide,
            tiles.values,
            tiles.scales,
            count,
            cols,
            tiles.scales.shape[1],
            WHOLE=cols % TILE == 0,
            TILES=TILES,
            AT_ONCE=at_once(wide),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )


@triton.jit
def encode(wide: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Turn fp32 [n, 128] into what is rounded to E4M3, and scales [n]: the steps of tiles.py."""
    # Without their sign, the bits of floats are in order, and NaN is above Inf: a maximum of floats
    # would pass over NaN.
    bits = wide.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    amax = tl.max(bits, axis=1).to(tl.float32, bitcast=True)
    inverse = tl.math.div_rn(tl.full(amax.shape, _E4M3_MAX, tl.float32), amax)
    inverse = tl.where(inverse > _MAX_INVERSE, _MAX_INVERSE, inverse)
    inverse = tl.where(amax == 0, 1.0, inverse)
    return wide * inverse[:, None], tl.math.div_rn(tl.full(amax.shape, 1.0, tl.float32), inverse)


@triton.jit
def _place(
    first: tl.tensor,
    count: tl.tensor,
    cols: tl.tensor,
    per_row: tl.tensor,
    WHOLE: tl.constexpr,
    TILES: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Offsets of the elements of TILES tiles from tile `first` on, int64, and which exist."""
    tile = first + tl.arange(0, TILES)
    lane = tl.arange(0, _TILE)[None, :]
    exists = (tile < count)[:, None]
    if WHOLE:
        at = (tile * _TILE)[:, None] + lane
        return tl.max_contiguous(at, [1, AT_ONCE]), exists & (lane < _TILE)
    row = tile // per_row
    column = ((tile - row * per_row) * _TILE)[:, None] + lane
    at = (row * cols)[:, None] + column
    return tl.max_contiguous(at, [1, AT_ONCE]), exists & (column < cols)


@triton.jit
def _quantise(
    x: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    count: tl.tensor,
    cols: tl.tensor,
    per_row: tl.tensor,
    WHOLE: tl.constexpr,
    TILES: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """TILES tiles; a matrix may have more than 2^31 elements."""
    first = tl.program_id(0).to(tl.int64) * TILES
    at, inside = _place(first, count, cols, per_row, WHOLE, TILES, AT_ONCE)
    wide = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scaled, scale = encode(wide)
    tl.store(values + at, scaled.to(values.dtype.element_ty), mask=inside)
    tile = first + tl.arange(0, TILES)
    tl.store(scales + tile, scale, mask=tile < count)


@triton.jit
def _dequantise(
    out: tl.tensor,
    values: tl.tensor,
    scales: tl.tensor,
    count: tl.tensor,
    cols: tl.tensor,
    per_row: tl.tensor,
    WHOLE: tl.constexpr,
    TILES: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """TILES tiles."""
    first = tl.program_id(0).to(tl.int64) * TILES
    at, inside = _place(first, count, cols, per_row, WHOLE, TILES, AT_ONCE)
    tile = first + tl.arange(0, TILES)
    scale = tl.load(scales + tile, mask=tile < count, other=1.0)
    wide = tl.load(values + at, mask=inside, other=0.0).to(tl.float32) * scale[:, None]
    tl.store(out + at, wide.to(out.dtype.element_ty), mask=inside)
