# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="untyped-decorator"
"""SwiGLU in Triton: fp32 inside, one rounding at the end, one pass over memory.

All kernels take the same steps in the same order, and `enable_fp_fusion` is off, so that results
do not depend on which of them ran. A program takes columns of one row, as [tiles, 128].
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from k2_megatron.kernels.fp8_tile.tiles import TILE, Tiles, empty_tiles, tiles_in_row
from k2_megatron.kernels.fp8_tile.triton_kernels import at_once, encode

MAX_TILES = 16
WARPS = 4

_TILE = tl.constexpr(TILE)


def forward(x: Tensor | Tiles, probs: Tensor | None, out: Tensor) -> None:
    """Write SwiGLU of x into out [rows, f]; see `dispatch.swiglu`."""
    values, scales = (x.values, x.scales) if isinstance(x, Tiles) else (x, x)
    _launch_forward(values, scales, probs, out, reads=isinstance(x, Tiles), writes=None)


def forward_and_tiles(x: Tensor, probs: Tensor | None, out: Tensor) -> Tiles:
    """Write SwiGLU of x into out and give x's FP8 copy; f is a multiple of 128."""
    assert out.shape[1] % TILE == 0
    tiles = empty_tiles(x)
    _launch_forward(x, tiles.scales, probs, out, reads=False, writes=tiles)
    return tiles


def backward(
    dy: Tensor, x: Tensor | Tiles, probs: Tensor | None, dx: Tensor, dprobs: Tensor | None
) -> None:
    """Write dx [rows, 2 f] and dprobs [rows]; see `dispatch.swiglu_backward`."""
    rows, size = dy.shape
    if rows == 0:
        return
    values, scales = (x.values, x.scales) if isinstance(x, Tiles) else (x, x)
    with torch.cuda.device(dy.get_device()):
        _backward[(rows,)](
            dy,
            values,
            scales,
            dy if probs is None else probs,
            dx,
            dy if dprobs is None else dprobs,
            size,
            tiles_in_row(2 * size),
            READS_TILES=isinstance(x, Tiles),
            WHOLE=size % TILE == 0,
            WEIGHTED=probs is not None,
            TILES=_tiles_at_once(size),
            AT_ONCE=at_once(dy),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )


def _launch_forward(
    x: Tensor,
    scales: Tensor,
    probs: Tensor | None,
    out: Tensor,
    *,
    reads: bool,
    writes: Tiles | None,
) -> None:
    rows, size = out.shape
    if rows == 0:
        return
    tiles = _tiles_at_once(size)
    # Triton launches on the current device, whatever device the tensors are on.
    with torch.cuda.device(out.get_device()):
        _forward[(rows, triton.cdiv(size, tiles * TILE))](
            x,
            scales,
            out if probs is None else probs,
            out,
            out if writes is None else writes.values,
            size,
            tiles_in_row(2 * size),
            READS_TILES=reads,
            WRITES_TILES=writes is not None,
            WHOLE=size % TILE == 0,
            WEIGHTED=probs is not None,
            TILES=tiles,
            AT_ONCE=at_once(out),
            num_warps=WARPS,
            enable_fp_fusion=False,
        )


def _tiles_at_once(size: int) -> int:
    """Tiles of a half row that a program holds."""
    return min(MAX_TILES, int(triton.next_power_of_2(tiles_in_row(size))))


@triton.jit
def _columns(tile: tl.tensor, AT_ONCE: tl.constexpr) -> tl.tensor:
    """Columns of tiles of a row, [tiles, 128]."""
    column = (tile * _TILE)[:, None] + tl.arange(0, _TILE)[None, :]
    return tl.max_contiguous(column, [1, AT_ONCE])


@triton.jit
def _load(
    x: tl.tensor,
    scales: tl.tensor,
    tile: tl.tensor,
    begin: tl.tensor,
    size: tl.tensor,
    READS_TILES: tl.constexpr,
    WHOLE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    dtype: tl.constexpr,
) -> tl.tensor:
    """Tiles of half a row, which begins at column `begin`: fp32 [tiles, 128], 0 beyond its end.

    `x` and `scales` point to the row. Numbers of an FP8 copy are rounded to `dtype`, as if they had
    been dequantised before.
    """
    column = _columns(tile, AT_ONCE)
    inside = column < size
    wide = tl.load(x + begin + column, mask=inside, other=0.0).to(tl.float32)
    if READS_TILES:
        if WHOLE:
            scale = tl.load(scales + begin // _TILE + tile, mask=tile * _TILE < size, other=1.0)
            wide = wide * scale[:, None]
        else:
            wide *= tl.load(scales + (begin + column) // _TILE, mask=inside, other=1.0)
        wide = wide.to(dtype).to(tl.float32)
    return wide


@triton.jit
def _forward(
    x: tl.tensor,
    scales: tl.tensor,
    probs: tl.tensor,
    out: tl.tensor,
    values: tl.tensor,
    size: tl.tensor,
    per_row: tl.tensor,
    READS_TILES: tl.constexpr,
    WRITES_TILES: tl.constexpr,
    WHOLE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    TILES: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """TILES tiles of gate and of up of one row; a matrix may have more than 2^31 elements."""
    dtype: tl.constexpr = out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    x += row * 2 * size
    scales += row * per_row
    tile = tl.program_id(1) * TILES + tl.arange(0, TILES)
    column = _columns(tile, AT_ONCE)
    inside = column < size
    gate = _load(x, scales, tile, 0, size, READS_TILES, WHOLE, AT_ONCE, dtype)
    up = _load(x, scales, tile, size, size, READS_TILES, WHOLE, AT_ONCE, dtype)
    y = gate * tl.sigmoid(gate) * up
    if WEIGHTED:
        y = y * tl.load(probs + row).to(tl.float32)
    tl.store(out + row * size + column, y.to(dtype), mask=inside)
    if WRITES_TILES:
        values += row * 2 * size
        exists = tile * _TILE < size
        scaled, scale = encode(gate)
        tl.store(values + column, scaled.to(values.dtype.element_ty), mask=inside)
        tl.store(scales + tile, scale, mask=exists)
        scaled, scale = encode(up)
        tl.store(values + size + column, scaled.to(values.dtype.element_ty), mask=inside)
        tl.store(scales + size // _TILE + tile, scale, mask=exists)


@triton.jit
def _backward(
    dy: tl.tensor,
    x: tl.tensor,
    scales: tl.tensor,
    probs: tl.tensor,
    dx: tl.tensor,
    dprobs: tl.tensor,
    size: tl.tensor,
    per_row: tl.tensor,
    READS_TILES: tl.constexpr,
    WHOLE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    TILES: tl.constexpr,
    AT_ONCE: tl.constexpr,
) -> None:
    """One row, TILES tiles of gate and of up at a time: the gradient of its weight is one sum."""
    dtype: tl.constexpr = dx.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    x += row * 2 * size
    dx += row * 2 * size
    dy += row * size
    scales += row * per_row
    weight = 1.0
    if WEIGHTED:
        weight = tl.load(probs + row).to(tl.float32)
    total = tl.zeros((TILES, _TILE), tl.float32)
    for first in range(0, tl.cdiv(size, _TILE), TILES):
        tile = first + tl.arange(0, TILES)
        column = _columns(tile, AT_ONCE)
        inside = column < size
        gate = _load(x, scales, tile, 0, size, READS_TILES, WHOLE, AT_ONCE, dtype)
        up = _load(x, scales, tile, size, size, READS_TILES, WHOLE, AT_ONCE, dtype)
        d = tl.load(dy + column, mask=inside, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        activated = gate * sigmoid
        if WEIGHTED:
            total += d * (activated * up)
            d = d * weight
        dgate = d * up * (sigmoid * (1.0 + gate * (1.0 - sigmoid)))
        tl.store(dx + column, dgate.to(dtype), mask=inside)
        tl.store(dx + size + column, (d * activated).to(dtype), mask=inside)
    if WEIGHTED:
        tl.store(dprobs + row, tl.sum(total))
