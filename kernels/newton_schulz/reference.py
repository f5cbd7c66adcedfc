# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What Newton-Schulz computes: its coefficients, and the plain form in PyTorch.

K2's Muon is Moonlight's (arXiv 2502.16982, section 2.2). A matrix M keeps its singular vectors and
gets singular values near 1:

    X = M / (|M|_F + 1e-7);  each step:  A = X Xt,  X <- a X + (b A + c A A) X
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

Triple = tuple[float, float, float]

K2_COEFFICIENTS: Triple = (3.4445, -4.7750, 2.0315)
NORM_EPSILON = 1e-7

# float16 holds X times this power of two. The entries of a normalised 2048 x 7168 matrix are near
# 3e-4, its small rows far below, and float16 loses bits under 6e-5. No partial sum of a product
# overflows while singular values stay under 2: |x_i . x_j| <= (2 * 128)^2 = 65536, and those of
# K2's coefficients stay under 1.3.
FLOAT16_SCALE = 2.0**7

# PyTorch's broadcasting division with a cast reaches half of the memory bandwidth, but is launched
# sooner.
MIN_TRITON_ELEMENTS = 2**26


def coefficients_of_steps(
    coefficients: Triple | Sequence[Triple], steps: int
) -> tuple[Triple, ...]:
    """(a, b, c) of each step, from one triple for all or from `steps` triples."""
    if isinstance(coefficients[0], (int, float)):
        return (cast(Triple, tuple(coefficients)),) * steps
    triples = cast(tuple[Triple, ...], tuple(coefficients))
    assert len(triples) == steps, f"{len(triples)} triples of coefficients for {steps} steps"
    return triples


def scale_of(dtype: torch.dtype) -> float:
    """The power of two by which X is held multiplied in `dtype`."""
    return FLOAT16_SCALE if dtype == torch.float16 else 1.0


def normalised(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """X = M / (|M|_F + 1e-7), times `scale_of(dtype)`: [n, rows, cols] in `dtype`, contiguous.

    Norm and factor are fp32 at least; on CUDA no fp32 copy of the matrices is made.
    """
    wide = torch.promote_types(matrices.dtype, torch.float32)
    norms = torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True, dtype=wide)
    divisors = norms.mul_(1 / scale_of(dtype)).add_(NORM_EPSILON / scale_of(dtype))
    if matrices.is_cuda and matrices.is_contiguous() and matrices.numel() >= MIN_TRITON_ELEMENTS:
        # Triton is there only where CUDA is.
        from k2_megatron.kernels.newton_schulz.scaling import divided

        return divided(matrices, divisors, dtype)
    out = torch.empty(matrices.shape, dtype=dtype, device=matrices.device)
    return torch.div(matrices, divisors, out=out)


def newton_schulz_plain(
    matrices: Tensor, coefficients: Sequence[Triple], dtype: torch.dtype
) -> Tensor:
    """The iteration as published, everything but the norm in `dtype`.

    Args:
        matrices: floating point [n, rows, cols]; left as they are.
        coefficients: (a, b, c) of each step.
        dtype: float64, float32, bfloat16 or float16.

    Returns:
        [n, rows, cols] in `dtype`.
    """
    x = normalised(matrices, dtype)
    tall = x.shape[1] > x.shape[2]
    size = min(x.shape[1:])
    gram = x.new_empty((x.shape[0], size, size))
    scale, unscale = scale_of(dtype), 1.0
    for step, (a, b, c) in enumerate(coefficients, 1):
        if step == len(coefficients):
            unscale = 1 / scale
        gram.baddbmm_(*((x.mT, x) if tall else (x, x.mT)), beta=0, alpha=scale**-2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        pair = (x, polynomial) if tall else (polynomial, x)
        x = torch.baddbmm(x, *pair, beta=a * unscale, alpha=unscale)
    return x
