# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""FP8 tiles from Transformer Engine's block quantiser, set to give what ours gives.

Its defaults differ: scales are powers of two, tiles 128 x 128, scales transposed and padded for
matrix products, and a transposed copy is made too (transformer_engine 2.11,
pytorch/tensor/float8_blockwise_tensor.py). The layout it uses for all-gathers is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from k2_megatron.kernels.fp8_tile.tiles import Tiles, empty_tiles, tiles_in_row
from k2_megatron.optional import require


def quantise(x: Tensor) -> Tiles:
    """Make an FP8 copy of x [rows, cols], cols a multiple of 16; see `dispatch.quantise`.

    Raises:
        MissingPackageError: Transformer Engine is not installed.
    """
    require("transformer_engine", 'the FP8 backend "transformer_engine"')
    rows, cols = x.shape
    assert x.is_cuda and cols % 16 == 0
    if rows == 0:
        return empty_tiles(x)
    from transformer_engine.pytorch import Float8BlockQuantizer
    from transformer_engine.pytorch.constants import TE_DType

    quantizer = Float8BlockQuantizer(
        TE_DType[torch.float8_e4m3fn],
        rowwise=True,
        columnwise=False,
        amax_epsilon=0.0,
        force_pow_2_scales=False,
        block_scaling_dim=1,
        all_gather_usage=True,
    )
    # A plain holder of the two tensors, not a subclass of Tensor.
    quantizer.internal = True
    # It allocates on the current device.
    with torch.cuda.device(x.get_device()), torch.no_grad():
        result = quantizer.quantize(x)
    values = result._rowwise_data.view(torch.float8_e4m3fn)
    scales = result._rowwise_scale_inv
    assert scales.shape == (rows, tiles_in_row(cols))
    return Tiles(values=values, scales=scales)
