# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter with the roundings of a GPU, so that kernels can be compared bit for bit.

Triton 3.6's interpreter truncates fp32 to bfloat16, and to float8 rounds halves up, loses the carry
into the exponent and truncates subnormals (runtime/interpreter.py, `_convert_float`). `mend`
replaces that one function of the simulator by PyTorch's conversions.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8e4nv": torch.float8_e4m3fn,
}
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def mend() -> None:
    """Call once, where TRITON_INTERPRET is 1."""
    importlib.import_module("triton.runtime.interpreter")._convert_float = _convert


def _convert(data: Any, given: Any, wanted: Any, rounding_mode: object) -> Any:
    """Bits of `data`, numpy, as the Triton dtype `wanted`: to nearest, ties to even, saturating."""
    source, target = _DTYPES[given.name], _DTYPES[wanted.name]
    bits = torch.frombuffer(bytearray(data.tobytes()), dtype=_BITS[source.itemsize])
    numbers = bits.view(source).to(torch.float32)
    if target == torch.float8_e4m3fn:
        # cvt.rn.satfinite.e4m3x2.f32; NaN stays NaN.
        numbers = numbers.clamp(-448.0, 448.0)
    converted = numbers.to(target).view(_BITS[target.itemsize]).numpy()
    return converted.view(f"uint{8 * target.itemsize}").reshape(data.shape)
