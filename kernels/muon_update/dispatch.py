# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The elementwise halves of a Muon step on flat slices: Triton on CUDA, PyTorch elsewhere.

Muon as Moonlight trains with it (arXiv 2502.16982, section 2.2): momentum, a direction that
Newton-Schulz then orthogonalises, and a decoupled decay. Both functions are elementwise, so a
slice may begin and end anywhere in a matrix; both results are the same bit for bit on every
device and for every way of cutting the slices. A slice is [n], or [r, n]: r runs of n elements at
any equal distances, such as the rows of all attention heads, in one launch.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from k2_megatron.kernels.muon_update import reference


def momentum_direction_(
    momentum: Tensor,
    gradient: Tensor,
    out: Tensor,
    *,
    mu: float,
    grad_scale: float,
    nesterov: bool,
) -> None:
    """Update the momentum in place and write what is to be orthogonalised.

    In fp32, rounding after each operation:

        g = gradient * grad_scale
        m = momentum * mu + g
        out = g + m * mu  if nesterov else  m

    `momentum` gets m and `out` its value, each rounded to its own dtype; the direction is computed
    from the unrounded m.

    Args:
        momentum: fp32 or bf16 slice.
        gradient: fp32, bf16 or fp16 slice; left as it is.
        out: fp32, bf16 or fp16 slice; may be `gradient` itself, nothing else may overlap.
        mu: share of the momentum that is kept.
        grad_scale: factor of the gradient, such as that of clipping.
        nesterov: look one step ahead.
    """
    _check(momentum, gradient, out)
    backend = _backend(momentum)
    backend.momentum_direction_(
        momentum, gradient, out, mu=mu, grad_scale=grad_scale, nesterov=nesterov
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
    """Apply the scaled update and the decoupled weight decay in place.

    In fp32, rounding after each operation:

        master = master - (update * scale + master * weight_decay) * lr

    Args:
        master: fp32 slice.
        update: fp32, bf16 or fp16 slice; left as it is.
        lr: learning rate.
        weight_decay: factor of the decay before the learning rate.
        scale: factor of the update, such as 0.2 * sqrt(max(rows, cols)).
        parameter: bf16 or fp16 slice that gets the new master rounded; None where the master is the
            parameter.
    """
    assert master.dtype == torch.float32
    _check(master, update, *(() if parameter is None else (parameter,)))
    backend = _backend(master)
    backend.apply_update_(
        master, update, lr=lr, weight_decay=weight_decay, scale=scale, parameter=parameter
    )


def _check(*slices: Tensor) -> None:
    first = slices[0]
    assert all(piece.dim() in (1, 2) for piece in slices)
    assert all(piece.stride(-1) == 1 or piece.shape[-1] == 1 for piece in slices)
    assert all(piece.shape == first.shape for piece in slices)
    assert all(piece.device == first.device for piece in slices)


def _backend(tensor: Tensor) -> ModuleType:
    if not tensor.is_cuda:
        return reference
    # Triton is there only where CUDA is.
    from k2_megatron.kernels.muon_update import triton_kernels

    return triton_kernels
