# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The entry to SwiGLU and its backward, with or without an FP8 copy of the input.

    y = silu(gate) * up * probs        [gate | up] = x

Triton on CUDA: bf16 in, fp32 inside, one rounding at the end. PyTorch elsewhere, rounding where
megatron-core does. Nothing here is differentiable: the caller's autograd function calls both
halves. `probs` is the weight of the gate of the mixture, which megatron-core applies here, before
the down-projection.
"""

from __future__ import annotations

import torch
from torch import Tensor

from k2_megatron.kernels.fp8_tile import dispatch as fp8_tile
from k2_megatron.kernels.fp8_tile.tiles import TILE, Tiles
from k2_megatron.kernels.swiglu import reference


def swiglu(x: Tensor | Tiles, probs: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """Compute SwiGLU.

    Args:
        x: [rows, 2 f] in bf16, fp32 or fp16, contiguous; or its FP8 copy, from which the result is
            that of the dequantised numbers in `out`'s dtype.
        probs: fp32 [rows], contiguous, or None for 1.
        out: [rows, f], contiguous, where the result is written; needed with an FP8 copy.

    Returns:
        `out`, or a new tensor [rows, f] in x's dtype.
    """
    values = _values(x)
    _check(values, probs)
    if out is None:
        assert not isinstance(x, Tiles), "an FP8 copy does not say which dtype the result has"
        out = _empty_half(values, x.dtype)
    assert out.is_contiguous() and out.shape == (values.shape[0], values.shape[1] // 2)
    if not out.is_cuda:
        return out.copy_(reference.swiglu(_numbers(x, out.dtype), probs))
    # Triton is there only where CUDA is.
    from k2_megatron.kernels.swiglu import triton_kernels

    triton_kernels.forward(x, probs, out)
    return out


def swiglu_and_tiles(x: Tensor, probs: Tensor | None = None) -> tuple[Tensor, Tiles]:
    """Compute SwiGLU and, in the same pass over memory, the FP8 copy of its input.

    Args:
        x: as in `swiglu`, not an FP8 copy.
        probs: as in `swiglu`.

    Returns:
        What `swiglu(x, probs)` gives, bit for bit, and what `quantise(x)` gives, bit for bit.
    """
    _check(x, probs)
    # The two halves of a row share a tile where the middle is not the end of one.
    if not x.is_cuda or x.shape[1] % (2 * TILE) != 0:
        return swiglu(x, probs), fp8_tile.quantise(x)
    from k2_megatron.kernels.swiglu import triton_kernels

    out = _empty_half(x, x.dtype)
    return out, triton_kernels.forward_and_tiles(x, probs, out)


def swiglu_backward(
    dy: Tensor, x: Tensor | Tiles, probs: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Compute SwiGLU's gradients.

    Args:
        dy: gradient of the result, [rows, f], contiguous, in the dtype of the forward's x.
        x: the forward's input [rows, 2 f], or its FP8 copy: then the gradients are those at the
            dequantised numbers, rounded to dy's dtype, bit for bit.
        probs: what the forward was given.

    Returns:
        Gradient of x, [rows, 2 f] in dy's dtype, and that of probs, fp32 [rows], None without them.
    """
    values = _values(x)
    _check(values, probs)
    assert dy.is_contiguous() and dy.shape == (values.shape[0], values.shape[1] // 2)
    assert isinstance(x, Tiles) or x.dtype == dy.dtype
    if not dy.is_cuda:
        return reference.swiglu_backward(dy, _numbers(x, dy.dtype), probs)
    from k2_megatron.kernels.swiglu import triton_kernels

    dx = torch.empty(values.shape, dtype=dy.dtype, device=dy.device)
    dprobs = None if probs is None else torch.empty_like(probs)
    triton_kernels.backward(dy, x, probs, dx, dprobs)
    return dx, dprobs


def _values(x: Tensor | Tiles) -> Tensor:
    """What has the shape of x."""
    return x.values if isinstance(x, Tiles) else x


def _numbers(x: Tensor | Tiles, dtype: torch.dtype) -> Tensor:
    """The tensor x, or what its FP8 copy holds, in `dtype`."""
    if not isinstance(x, Tiles):
        return x
    out = torch.empty(x.values.shape, dtype=dtype, device=x.values.device)
    fp8_tile.dequantise(x, out)
    return out


def _empty_half(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(x.shape[0], x.shape[1] // 2, dtype=dtype, device=x.device)


def _check(x: Tensor, probs: Tensor | None) -> None:
    assert x.dim() == 2 and x.is_contiguous() and x.shape[1] % 2 == 0 and x.shape[1] > 0
    assert probs is None or (probs.shape == x.shape[:1] and probs.is_contiguous())
