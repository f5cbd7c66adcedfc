# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="untyped-decorator"
"""Divide and cast a batch of matrices in one pass over memory, in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def divided(matrices: Tensor, divisors: Tensor, dtype: torch.dtype) -> Tensor:
    """Each matrix over its divisor.

    Args:
        matrices: fp32, bf16 or fp16 [n, rows, cols], contiguous.
        divisors: fp32, one for each matrix.
        dtype: of the result, [n, rows, cols]; the quotient is fp32 and rounded once.
    """
    out = torch.empty_like(matrices, dtype=dtype)
    length = matrices[0].numel()
    _divided[(triton.cdiv(length, BLOCK), len(matrices))](
        matrices, divisors, out, length, BLOCK=BLOCK, num_warps=8
    )
    return out


@triton.jit
def _divided(
    matrices: tl.tensor,
    divisors: tl.tensor,
    out: tl.tensor,
    length: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK elements of one matrix."""
    matrix = tl.program_id(1)
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < length
    begin = matrix.to(tl.int64) * length
    values = tl.load(matrices + begin + offsets, mask=inside).to(tl.float32)
    values /= tl.load(divisors + matrix)
    tl.store(out + begin + offsets, values.to(out.dtype.element_ty), mask=inside)
