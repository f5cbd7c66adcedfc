# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Transformer Engine's product in the place of Apex's weight-gradient kernel.

megatron-core's output layer adds its weight's gradient to the fp32 sum inside the product only with
a kernel of Apex, which is on no registry. cuBLAS does the same for Transformer Engine's layers.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor


def lend() -> None:
    """Give megatron-core the kernel, unless Apex's is there."""
    import megatron.core.tensor_parallel.layers as tensor_layers

    if not tensor_layers._grad_accum_fusion_available:
        tensor_layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(
            wgrad_gemm_accum_fp32=accumulate
        )
        tensor_layers._grad_accum_fusion_available = True
    # Transformer Engine keeps what the engine hands to DistributedDataParallel in place of a
    # gradient for ever, 2.3 GB for K2's output layer; nobody reads it.
    tensor_layers.get_dummy_wgrad = stand_in


def stand_in(shape: list[int], dtype: torch.dtype, zero: bool = False) -> Tensor:
    """A tensor of a gradient's shape on the current device, to be dropped at once."""
    make = torch.zeros if zero else torch.empty
    return make(shape, dtype=dtype, device="cuda")


def accumulate(inputs: Tensor, gradients: Tensor, total: Tensor) -> None:
    """Add the gradient of a linear layer's weight to its sum.

    Args:
        inputs: [rows, in], bf16.
        gradients: of the output, [rows, out], bf16.
        total: fp32 [out, in], contiguous; it is changed.
    """
    from transformer_engine.pytorch.cpp_extensions import general_gemm

    general_gemm(
        inputs,
        gradients,
        out_dtype=torch.float32,
        layout="NT",
        out=total,
        accumulate=True,
        grad=True,
    )
