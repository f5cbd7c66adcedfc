# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Weights stored as FP8 E4M3 in square blocks with one scale each, as DeepSeek-V3 and K2 have it.

`NAME.weight_scale_inv` [ceil(rows / b), ceil(columns / b)] beside `NAME.weight` holds what a block
is multiplied with; blocks at the right and lower edge may be cut.
"""

from __future__ import annotations

import torch

SCALE_SUFFIX = "_scale_inv"


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Shape of the scales of a weight [rows, columns]."""
    return tuple(-(-size // extent) for size, extent in zip(shape, block, strict=True))


def dequantise(weight: torch.Tensor, scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """The weight in fp32: each element times its block's scale.

    Args:
        weight: float8_e4m3fn, [rows, columns].
        scale: floating point, `scale_shape(weight.shape, block)`.
        block: rows and columns of a block.
    """
    rows, cols = weight.shape
    found = weight.to(torch.float32)
    scale = scale.to(torch.float32).repeat_interleave(block[1], dim=1)[:, :cols]
    for index, row in enumerate(range(0, rows, block[0])):  # no second matrix of full size
        found[row : row + block[0]] *= scale[index]
    return found
