# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Newton-Schulz in the Gram form: most of the work on small symmetric matrices.

X_k = Q_k X_0, where Q_k is a polynomial of A = X_0 X_0t. So r x r matrices carry the iteration,

    P = a I + b A + c A A;   Q <- P Q;   A <- (P A) P   (that is X Xt of the next X)

and X itself, r x c with r <= c, is touched only where Q is folded into it. A, P, P A and Q are
polynomials of one symmetric matrix, so they commute, every product of two is symmetric, and half
of it need be computed. Then a segment of L steps that ends with a folding takes

    3 r r c + (4 L - 3) r r r FLOPs; L steps of the plain form take L (4 r r c + 2 r r r)

and as r <= c, fewer segments are never dearer.

Rounding bounds L. A is rounded relative to its largest eigenvalue, and where singular values are
small, a step multiplies that error by a a, 12 with K2's a = 3.4445. In float16, five steps as
3 + 2 err three to ten times less than the plain form in bfloat16, nearly low-rank matrices
included; in one segment they err more on those (tests/kernels/test_newton_schulz.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from k2_megatron.kernels.newton_schulz.reference import Triple, normalised, scale_of

MAX_SEGMENT = 3


class SymmetricProduct(Protocol):
    """out = alpha * left @ right^T + beta * addend + gamma * I, known to be symmetric."""

    def __call__(
        self,
        left: Tensor,
        right: Tensor,
        out: Tensor,
        *,
        columns: bool = False,
        addend: Tensor | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
        gamma: float = 0.0,
    ) -> None:
        """Compute all of `out`.

        Args:
            left: [n, m, k], or [n, k, m] where `columns`.
            right: like `left`.
            out: [n, m, m]; overlaps no other argument.
            columns: multiply columns, left^T @ right, in place of rows.
            addend: symmetric [n, m, m].
            alpha: factor of the product.
            beta: factor of the addend.
            gamma: what is added to the diagonal.
        """


def full_product(
    left: Tensor,
    right: Tensor,
    out: Tensor,
    *,
    columns: bool = False,
    addend: Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 0.0,
    gamma: float = 0.0,
) -> None:
    """`SymmetricProduct` by PyTorch's matrix product, which computes both halves."""
    pair = (left.mT, right) if columns else (left, right.mT)
    if addend is None:
        out.baddbmm_(*pair, beta=0, alpha=alpha)
    else:
        torch.baddbmm(addend, *pair, beta=beta, alpha=alpha, out=out)
    if gamma:
        out.diagonal(dim1=1, dim2=2).add_(gamma)


def segment_lengths(steps: int) -> list[int]:
    """Cut the steps into as few segments as `MAX_SEGMENT` allows.

    The longer ones come first: what they get wrong, the steps that follow still bring near 1.
    """
    count = -(-steps // MAX_SEGMENT)
    return [(steps + count - 1 - index) // count for index in range(count)]


def newton_schulz_gram(
    matrices: Tensor,
    coefficients: Sequence[Triple],
    dtype: torch.dtype,
    product: SymmetricProduct = full_product,
) -> Tensor:
    """The same function as `newton_schulz_plain`, with fewer operations.

    Nothing is transposed: a matrix of more rows than columns is multiplied by Q from the right.

    Args:
        matrices: floating point [n, rows, cols]; left as they are.
        coefficients: (a, b, c) of each step.
        dtype: of everything but the norm; made for float16.
        product: computes the symmetric products.

    Returns:
        [n, rows, cols] in `dtype`.
    """
    x = normalised(matrices, dtype)
    tall = x.shape[1] > x.shape[2]
    size = min(x.shape[1:])
    squares = [x.new_empty((x.shape[0], size, size)) for _ in range(4)]
    folded = torch.empty_like(x)
    done, last = 0, len(coefficients)
    for length in segment_lengths(last):
        gram = squares[0]
        product(x, x, gram, columns=tall, alpha=scale_of(dtype) ** -2)
        q = _polynomial_of_segment(squares, coefficients[done : done + length], product)
        done += length
        factor = 1 / scale_of(dtype) if done == last else 1.0
        folded.baddbmm_(*((x, q) if tall else (q, x)), beta=0, alpha=factor)
        x, folded = folded, x
    return x


def _polynomial_of_segment(
    squares: list[Tensor], coefficients: Sequence[Triple], product: SymmetricProduct
) -> Tensor:
    """Q of some steps from A, which is the first of four buffers [n, r, r].

    All four are overwritten; Q is one of them.
    """
    gram, *free = squares
    q: Tensor | None = None
    for index, (a, b, c) in enumerate(coefficients):
        p = free.pop()
        product(gram, gram, p, addend=gram, alpha=c, beta=b, gamma=a)
        spare = free.pop()
        if index + 1 < len(coefficients):
            product(p, gram, spare)
            product(spare, p, gram)
        if q is None:
            q = p
            free.append(spare)
        else:
            product(p, q, spare)
            free += [p, q]
            q = spare
    assert q is not None
    return q
