# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The entry to Newton-Schulz: which form, in which dtype, with which products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from k2_megatron.kernels.newton_schulz.gram import (
    SymmetricProduct,
    full_product,
    newton_schulz_gram,
)
from k2_megatron.kernels.newton_schulz.reference import (
    K2_COEFFICIENTS,
    Triple,
    coefficients_of_steps,
    newton_schulz_plain,
)

# Less work than this, of a batch in the plain form, is done sooner than its kernels are launched,
# and the plain form has fewer. About 2 ms on an H100.
MIN_GRAM_FLOPS = 1e12


def fast_dtype(device: torch.device) -> torch.dtype:
    """The compute dtype to train with: float16 on CUDA, bfloat16 elsewhere."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def orthogonalise(
    matrices: Tensor,
    *,
    steps: int = 5,
    coefficients: Triple | Sequence[Triple] = K2_COEFFICIENTS,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Bring the singular values of each matrix near 1 by Newton-Schulz.

    Args:
        matrices: fp32, bf16 or fp16 [n, rows, cols]; left as they are.
        steps: of the iteration.
        coefficients: (a, b, c), or one such triple a step; in float16 they must keep singular
            values under 2.
        dtype: what is computed in. float32 and bfloat16: the plain form (float32 products obey
            `torch.set_float32_matmul_precision`). float16: the faster Gram form where there is
            enough to do, on CUDA with the symmetric products in Triton; it errs less than
            bfloat16. None: `fast_dtype` of the device.

    Returns:
        [n, rows, cols] in the compute dtype, contiguous; a zero matrix gives zeros.
    """
    assert matrices.dim() == 3 and matrices.is_floating_point()
    triples = coefficients_of_steps(coefficients, steps)
    dtype = dtype or fast_dtype(matrices.device)
    if dtype == torch.float16 and plain_flops(matrices.shape, steps) >= MIN_GRAM_FLOPS:
        return newton_schulz_gram(matrices, triples, dtype, _symmetric_product(matrices.device))
    return newton_schulz_plain(matrices, triples, dtype)


def plain_flops(shape: Sequence[int], steps: int) -> float:
    """FLOPs of the plain form on matrices [n, rows, cols]."""
    small, large = sorted(shape[1:])
    return float(steps * shape[0] * (4 * small**2 * large + 2 * small**3))


def _symmetric_product(device: torch.device) -> SymmetricProduct:
    if device.type != "cuda":
        return full_product
    # Triton is there only where CUDA is.
    from k2_megatron.kernels.newton_schulz.symmetric import symmetric_product

    return symmetric_product
