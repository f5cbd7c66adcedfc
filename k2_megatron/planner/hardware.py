# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What is assumed of a GPU and its machine: memory, and the rates behind every time estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU in its usual machine.

    Attributes:
        name: as in `--gpu`.
        memory_bytes: what CUDA says a process can have of it.
        flops: bf16 FLOP/s that forward and backward of K2's layers reach.
        newton_schulz_flops: the same of the optimizer, counted in FLOPs of the plain form.
        memory_rate: bytes/s of its memory that element-wise kernels reach.
        node_rate: bytes/s that one GPU sends within its node, in collectives.
        network_rate: bytes/s that one GPU sends to other nodes.
        host_rate: bytes/s to or from pinned host memory, either way.
        source: where the rates come from.
    """

    name: str
    memory_bytes: int
    flops: float
    newton_schulz_flops: float
    memory_rate: float
    node_rate: float
    network_rate: float
    host_rate: float
    source: str


_H100 = Gpu(
    name="H100",
    memory_bytes=int(79.1 * GIB),
    flops=430e12,
    newton_schulz_flops=555e12,
    memory_rate=2.4e12,
    node_rate=360e9,
    network_rate=40e9,
    host_rate=50e9,
    source="computation measured on two K2 layers, links 80 % of nominal",
)
GPUS: Mapping[str, Gpu] = {
    "H100": _H100,
    "H200": replace(
        _H100, name="H200", memory_bytes=int(139.8 * GIB), flops=440e12, memory_rate=3.6e12
    ),
    "H800": replace(
        _H100,
        name="H800",
        node_rate=160e9,
        source="an H100 with slower links between its GPUs: not measured",
    ),
}

# Of the memory, what PyTorch's allocator never hands out: CUDA context, NCCL's buffers, gaps.
# Assumed; `device/memory_used_bytes` of a run tells what it is there.
OUTSIDE_ALLOCATOR_BYTES = 3 * GIB
# Inside the allocator: work areas of cuBLAS and Transformer Engine.
LIBRARY_BYTES = 160 * 2**20
GPUS_PER_NODE = 8
# Of time that overlapped communication takes, what still shows (1F1B with expert overlap hides
# 93 %, Megatron Core's report on DeepSeek-V3).
EXPOSED_WHEN_OVERLAPPED = 0.07
# Of the rate of products, what is left when tensor parallelism cuts them: measured at 2 (274 of
# 407 TFLOP/s per GPU, its communication included), assumed for more.
TENSOR_PARALLEL_EFFICIENCY = 0.69
# Estimates of step time are off by up to this much, both ways, where they could be compared with
# measured steps (docs/plan.md).
ESTIMATE_ERROR = 0.25
