# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Choose the platform: the GPU where there is one, else the CPU; K2_MEGATRON_PLATFORM overrides."""

from __future__ import annotations

import os
from functools import cache

import torch

from k2_megatron.errors import UserError
from k2_megatron.platform.base import Platform

VARIABLE = "K2_MEGATRON_PLATFORM"


@cache
def current_platform() -> Platform:
    """The platform of this process.

    Raises:
        UserError: the environment variable names no platform, or a GPU that is not there.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "cpu", "cuda"):
        raise UserError(f"{VARIABLE}={wanted!r}: allowed are 'cpu' and 'cuda', or unset to choose")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{VARIABLE}=cuda, but PyTorch {torch.__version__} sees no CUDA device")
    if wanted == "cuda" or (not wanted and torch.cuda.is_available()):
        from k2_megatron.platform.cuda import CudaPlatform

        return CudaPlatform()
    from k2_megatron.platform.cpu import CpuPlatform

    return CpuPlatform()
