# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The entry to FP8 tiles: Triton or Transformer Engine on CUDA, PyTorch elsewhere.

What the tiles hold, and what becomes of numbers that are not finite, stands in tiles.py. Nothing
here is differentiable, and nothing waits for the GPU.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from k2_megatron.kernels.fp8_tile import reference
from k2_megatron.kernels.fp8_tile.tiles import Tiles, tiles_in_row

Backend = Literal["auto", "transformer_engine"]


def quantise(x: Tensor, *, backend: Backend = "auto") -> Tiles:
    """Make an FP8 copy.

    Args:
        x: bf16, fp32 or fp16 [..., cols], contiguous; rows may be none. cols is a multiple of 16
            with Transformer Engine; others are slower with Triton.
        backend: "auto": Triton on CUDA, PyTorch elsewhere. "transformer_engine": its block
            quantiser, on CUDA only, equal but for tiles whose amax is Inf, NaN or below 5e-36: it
            gives Inf back as 448, so prefer "auto".

    Returns:
        Tiles of [rows, cols], rows being the product of all sizes but the last.
    """
    assert x.is_contiguous() and x.dim() >= 1 and x.shape[-1] > 0
    assert x.dtype in (torch.bfloat16, torch.float32, torch.float16)
    assert backend in ("auto", "transformer_engine")
    matrix = x.detach().view(-1, x.shape[-1])
    if backend == "transformer_engine":
        from k2_megatron.kernels.fp8_tile import transformer_engine_backend

        return transformer_engine_backend.quantise(matrix)
    if not x.is_cuda:
        return reference.quantise(matrix)
    # Triton is there only where CUDA is.
    from k2_megatron.kernels.fp8_tile import triton_kernels

    return triton_kernels.quantise(matrix)


def dequantise(tiles: Tiles, out: Tensor) -> None:
    """Write the numbers of an FP8 copy, each rounded once.

    Args:
        tiles: of [rows, cols], from any backend.
        out: bf16, fp32 or fp16 [..., cols] with as many rows, contiguous, on the tiles' device.
    """
    rows, cols = tiles.values.shape
    assert out.is_contiguous() and out.shape[-1] == cols and out.numel() == rows * cols
    assert tiles.scales.shape == (rows, tiles_in_row(cols)) and out.device == tiles.values.device
    matrix = out.detach().view(rows, cols)
    if not out.is_cuda:
        reference.dequantise(tiles, matrix)
        return
    from k2_megatron.kernels.fp8_tile import triton_kernels

    triton_kernels.dequantise(tiles, matrix)
