# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Page-locked host memory of the size asked for, which a GPU copies to and from at full speed.

Ordinary pages, registered: PyTorch's own allocator of page-locked memory rounds up to a power of
two.
"""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_TOUCHING_THREADS = 8


def locked_memory(nbytes: int) -> Tensor:
    """uint8 [nbytes] of zeros in whole pages that stay where they are, until `unlock`.

    Raises:
        RuntimeError: the driver refuses to lock that much.
    """
    memory = pages(nbytes)
    if nbytes:
        code = _runtime().cudaHostRegister(memory.data_ptr(), nbytes, 0)
        if int(code) != 0:
            raise RuntimeError(f"cudaHostRegister: {code} for {nbytes} bytes")
    return memory


def unlock(memory: Tensor) -> None:
    """Wait for all copies and unlock the pages, which go with the last tensor."""
    if memory.numel():
        torch.cuda.synchronize()
        _runtime().cudaHostUnregister(memory.data_ptr())


def pages(nbytes: int) -> Tensor:
    """uint8 [nbytes] of zeros in whole pages.

    This process touches them first, so that they are of the NUMA node on which the launcher has
    put it: large ones, by some threads, because one takes minutes for 50 GiB. Forked readers of
    data do not get them: the kernel would copy locked pages at once.
    """
    if not nbytes:
        return torch.empty(0, dtype=torch.uint8)
    found = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    found.madvise(mmap.MADV_DONTFORK)
    with suppress(OSError):  # a kernel may be built without large pages
        found.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(found, dtype=torch.uint8)
    with ThreadPoolExecutor(_TOUCHING_THREADS) as threads:
        list(threads.map(Tensor.zero_, memory.chunk(_TOUCHING_THREADS)))
    return memory


def _runtime() -> Any:
    """CUDA's runtime, from which PyTorch has the calls that it does not wrap."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
