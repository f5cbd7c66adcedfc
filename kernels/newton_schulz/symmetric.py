# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="untyped-decorator"
"""Products that are known to be symmetric, in Triton: the upper half is computed and mirrored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How the work is cut: a program computes block_m x block_n of the result.

    block_n is block_m or twice that.

    Attributes:
        group: row tiles that run side by side, so that their operands stay in the L2 cache.
    """

    block_m: int
    block_n: int
    block_k: int
    group: int
    num_warps: int
    num_stages: int

    def count(self, size: int) -> int:
        """Tiles that reach the upper half of a matrix [size, size]."""
        columns = -(-size // self.block_n)
        return sum(columns - row // self.block_n for row in range(0, size, self.block_m))


# One of three, by size alone: a tuner would take its time in every run and could pick another
# order of summation in each. `benchmarks/newton_schulz.py --tiles` measures them and others.
LARGE = Tile(block_m=128, block_n=256, block_k=64, group=8, num_warps=8, num_stages=3)
MEDIUM = Tile(block_m=128, block_n=128, block_k=64, group=8, num_warps=4, num_stages=3)
SMALL = Tile(block_m=64, block_n=64, block_k=64, group=8, num_warps=4, num_stages=4)

# Large tiles need two rounds of the 132 processors of a Hopper GPU to pay.
MIN_LARGE_TILES = 264


def choose_tile(num_matrices: int, size: int) -> Tile:
    """The tile for a batch of results [size, size]."""
    if num_matrices * LARGE.count(size) >= MIN_LARGE_TILES:
        return LARGE
    return MEDIUM if size > 512 else SMALL


def symmetric_product(
    left: Tensor,
    right: Tensor,
    out: Tensor,
    *,
    columns: bool = False,
    addend: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    gamma: float = 0.0,
    tile: Tile | None = None,
    descriptors: bool | None = None,
) -> None:
    """`gram.SymmetricProduct` for contiguous float16 or bfloat16, with fp32 accumulation.

    The result is symmetric bit for bit: its lower half is a copy of the upper.

    Args:
        left: [n, m, k], or [n, k, m] where `columns`.
        right: like `left`.
        out: [n, m, m]; overlaps no other argument.
        columns: multiply columns, left^T @ right, in place of rows.
        addend: symmetric [n, m, m].
        alpha: factor of the product.
        beta: factor of the addend.
        gamma: what is added to the diagonal; only together with an addend.
        tile: by default `choose_tile`.
        descriptors: read through the tensor memory accelerator; by default where sizes allow.
    """
    num_matrices, size, _ = out.shape
    depth = left.shape[1] if columns else left.shape[2]
    operands = (left, right, out) if addend is None else (left, right, out, addend)
    assert left.shape == right.shape and out.shape == (num_matrices, size, size)
    assert left.shape == ((num_matrices, depth, size) if columns else (num_matrices, size, depth))
    assert addend is not None or gamma == 0.0
    assert all(x.is_contiguous() and x.dtype == left.dtype for x in operands)
    assert left.dtype in (torch.float16, torch.bfloat16)
    # Offsets inside one matrix are int32.
    assert max(size, depth) * size < 2**31
    tile = tile or choose_tile(num_matrices, size)
    if descriptors is None:
        descriptors = _descriptors_fit(left, right, columns, tile)
    sources: tuple[Any, Any] = (left, right)
    if descriptors:
        sources = (
            _descriptor(left, tile.block_m, columns, tile),
            _descriptor(right, tile.block_n, columns, tile),
        )
    grid = (triton.cdiv(size, tile.block_m) * triton.cdiv(size, tile.block_n), num_matrices)
    _symmetric_product[grid](
        *sources,
        out,
        out if addend is None else addend,
        size,
        depth,
        alpha,
        beta,
        gamma,
        COLUMNS=columns,
        DESCRIPTORS=descriptors,
        ADD=addend is not None,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k,
        GROUP=tile.group,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def _descriptors_fit(left: Tensor, right: Tensor, columns: bool, tile: Tile) -> bool:
    """Whether the accelerator can read the operands as one matrix [n * rows, cols] each.

    It wants addresses and rows in multiples of 16 bytes. Where a tile runs past the last row of
    its matrix it reads the next one: wrong rows of the result are not stored, but along the
    summed dimension nothing may follow.
    """
    aligned = all(x.data_ptr() % 16 == 0 for x in (left, right)) and left.shape[2] % 8 == 0
    exact = not columns or left.shape[1] % tile.block_k == 0
    return aligned and exact and left.shape[0] * left.shape[1] < 2**31


def _descriptor(matrices: Tensor, block: int, columns: bool, tile: Tile) -> TensorDescriptor:
    box = [tile.block_k, block] if columns else [block, tile.block_k]
    return TensorDescriptor.from_tensor(matrices.view(-1, matrices.shape[2]), box)


@triton.jit
def _symmetric_product(
    left: tl.tensor,
    right: tl.tensor,
    out: tl.tensor,
    addend: tl.tensor,
    size: tl.tensor,
    depth: tl.tensor,
    alpha: tl.tensor,
    beta: tl.tensor,
    gamma: tl.tensor,
    COLUMNS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    """One tile of one matrix, and its mirror image."""
    tiles_m = tl.cdiv(size, BLOCK_M)
    in_group = GROUP * tl.cdiv(size, BLOCK_N)
    program = tl.program_id(0)
    first = program // in_group * GROUP
    width = min(tiles_m - first, GROUP)
    row = (first + program % in_group % width) * BLOCK_M
    col = program % in_group // width * BLOCK_N
    if col + BLOCK_N <= row:
        return

    batch = tl.program_id(1)
    rows = row + tl.arange(0, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_N)
    if not DESCRIPTORS:
        left += batch.to(tl.int64) * size * depth
        right += batch.to(tl.int64) * size * depth
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for begin in range(0, depth, BLOCK_K):
        if DESCRIPTORS:
            if COLUMNS:
                x = left.load([batch * depth + begin, row]).T
                y = right.load([batch * depth + begin, col])
            else:
                x = left.load([batch * size + row, begin])
                y = right.load([batch * size + col, begin]).T
        else:
            x, y = _load_tiles(left, right, rows, cols, begin, size, depth, COLUMNS, BLOCK_K)
        total = tl.dot(x, y, total)

    # Squares are above, on or below the diagonal as a whole.
    total *= alpha
    if BLOCK_N == BLOCK_M:
        _store_square(total, row, col, out, addend, size, beta, gamma, ADD, BLOCK_M)
    else:
        halves = tl.permute(tl.reshape(total, (BLOCK_M, 2, BLOCK_M)), (0, 2, 1))
        near, far = tl.split(halves)
        _store_square(near, row, col, out, addend, size, beta, gamma, ADD, BLOCK_M)
        _store_square(far, row, col + BLOCK_M, out, addend, size, beta, gamma, ADD, BLOCK_M)


@triton.jit
def _store_square(
    total: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    out: tl.tensor,
    addend: tl.tensor,
    size: tl.tensor,
    beta: tl.tensor,
    gamma: tl.tensor,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Add to [BLOCK, BLOCK] of the product, round and store it and its mirror image."""
    if col >= row:
        here = tl.program_id(1).to(tl.int64) * size * size
        rows = row + tl.arange(0, BLOCK)
        cols = col + tl.arange(0, BLOCK)
        inside = (rows < size)[:, None] & (cols < size)[None, :]
        upper = rows[:, None] * size + cols[None, :]
        if ADD:
            total += beta * tl.load(addend + here + upper, mask=inside, other=0.0).to(tl.float32)
            total += tl.where(rows[:, None] == cols[None, :], gamma, 0.0)
        result = total.to(out.dtype.element_ty)
        if row == col:
            # Where the factors differ, rounding differs across the diagonal.
            result = tl.where(rows[:, None] <= cols[None, :], result, result.T)
        else:
            lower = cols[:, None] * size + rows[None, :]
            tl.store(out + here + lower, result.T, mask=inside.T)
        tl.store(out + here + upper, result, mask=inside)


@triton.jit
def _load_tiles(
    left: tl.tensor,
    right: tl.tensor,
    rows: tl.tensor,
    cols: tl.tensor,
    begin: tl.tensor,
    size: tl.tensor,
    depth: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """[BLOCK_M, BLOCK_K] of left and [BLOCK_K, BLOCK_N] of right, by pointers, for any size."""
    summed = begin + tl.arange(0, BLOCK_K)
    x_mask = (rows < size)[:, None] & (summed < depth)[None, :]
    y_mask = (summed < depth)[:, None] & (cols < size)[None, :]
    if COLUMNS:
        x = tl.load(left + summed[None, :] * size + rows[:, None], mask=x_mask, other=0.0)
        y = tl.load(right + summed[:, None] * size + cols[None, :], mask=y_mask, other=0.0)
    else:
        x = tl.load(left + rows[:, None] * depth + summed[None, :], mask=x_mask, other=0.0)
        y = tl.load(right + cols[None, :] * depth + summed[:, None], mask=y_mask, other=0.0)
    return x, y
