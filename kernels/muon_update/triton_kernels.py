# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="untyped-decorator"
"""The elementwise halves of a Muon step in Triton: one pass over memory each.

The operations and their order are those of reference.py, and `enable_fp_fusion` is off, so that no
multiplication and addition become one rounding: results are the reference's, bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def momentum_direction_(
    momentum: Tensor,
    gradient: Tensor,
    out: Tensor,
    *,
    mu: float,
    grad_scale: float,
    nesterov: bool,
) -> None:
    """See `dispatch.momentum_direction_`."""
    count, length = _runs(momentum)
    if count * length == 0:
        return
    _momentum_direction[(triton.cdiv(length, BLOCK), count)](
        momentum,
        gradient,
        out,
        length,
        *(_step(piece) for piece in (momentum, gradient, out)),
        mu,
        grad_scale,
        NESTEROV=nesterov,
        BLOCK=BLOCK,
        num_warps=8,
        enable_fp_fusion=False,
    )


def apply_update_(
    master: Tensor,
    update: Tensor,
    *,
    lr: float,
    weight_decay: float,
    scale: float,
    parameter: Tensor | None,
) -> None:
    """See `dispatch.apply_update_`."""
    count, length = _runs(master)
    if count * length == 0:
        return
    copy = master if parameter is None else parameter
    _apply_update[(triton.cdiv(length, BLOCK), count)](
        master,
        update,
        copy,
        length,
        *(_step(piece) for piece in (master, update, copy)),
        lr,
        weight_decay,
        scale,
        COPY=parameter is not None,
        BLOCK=BLOCK,
        num_warps=8,
        enable_fp_fusion=False,
    )


def _runs(piece: Tensor) -> tuple[int, int]:
    """Number of runs of a slice and elements of each."""
    return (1 if piece.dim() == 1 else piece.shape[0]), piece.shape[-1]


def _step(piece: Tensor) -> int:
    """Distance of the runs; any number where there is one, and 0 compiles one kernel for all."""
    count, _ = _runs(piece)
    return piece.stride(0) if count > 1 else 0


@triton.jit
def _momentum_direction(
    momentum: tl.tensor,
    gradient: tl.tensor,
    out: tl.tensor,
    length: tl.tensor,
    momentum_step: tl.tensor,
    gradient_step: tl.tensor,
    out_step: tl.tensor,
    mu: tl.tensor,
    grad_scale: tl.tensor,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of a run; a slice of a trillion parameters can exceed 2^31 elements."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    run = tl.program_id(1).to(tl.int64)
    momentum += run * momentum_step
    gradient += run * gradient_step
    out += run * out_step
    scaled = tl.load(gradient + at, mask=inside).to(tl.float32) * grad_scale
    updated = tl.load(momentum + at, mask=inside).to(tl.float32) * mu + scaled
    tl.store(momentum + at, updated.to(momentum.dtype.element_ty), mask=inside)
    direction = updated
    if NESTEROV:
        direction = scaled + updated * mu
    tl.store(out + at, direction.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _apply_update(
    master: tl.tensor,
    update: tl.tensor,
    parameter: tl.tensor,
    length: tl.tensor,
    master_step: tl.tensor,
    update_step: tl.tensor,
    parameter_step: tl.tensor,
    lr: tl.tensor,
    weight_decay: tl.tensor,
    scale: tl.tensor,
    COPY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A block of a run."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    run = tl.program_id(1).to(tl.int64)
    master += run * master_step
    update += run * update_step
    parameter += run * parameter_step
    weight = tl.load(master + at, mask=inside)
    change = tl.load(update + at, mask=inside).to(tl.float32) * scale + weight * weight_decay
    weight = weight - change * lr
    tl.store(master + at, weight, mask=inside)
    if COPY:
        tl.store(parameter + at, weight.to(parameter.dtype.element_ty), mask=inside)
