# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of single kernels share: the machine's line, and calls timed in turn."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch


def print_machine(device: torch.device, *packages: str) -> None:
    """Command, machine and versions of what was measured."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    on_gpu = device.type == "cuda"
    print(f"command: python3 {' '.join(sys.argv)}")
    print(f"machine: {torch.cuda.get_device_name() if on_gpu else f'CPU, {os.cpu_count()} cores'}")
    print(f"versions: {', '.join(found)}, CUDA {torch.version.cuda}")


def in_turn(sides: list[Callable[[], object]], rounds: int, device: torch.device) -> list[float]:
    """Median seconds of each side, called in turn, after two calls that compile and warm."""
    for side in sides * 2:
        side()
    if device.type == "cpu":
        return [
            statistics.median(times)
            for times in zip(*([clock(side) for side in sides] for _ in range(rounds)), strict=True)
        ]
    marks = []
    for _ in range(rounds):
        for side in sides:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            side()
            end.record()
            marks.append((begin, end))
    torch.cuda.synchronize()
    seconds = [begin.elapsed_time(end) / 1e3 for begin, end in marks]
    return [statistics.median(seconds[index :: len(sides)]) for index in range(len(sides))]


def product_flops(device: torch.device) -> float:
    """FLOP/s of a large bf16 product, 8192 x 8192 by 8192 x 8192, of the machine's own library."""
    x = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    y = torch.randn_like(x)
    return 2 * 8192**3 / in_turn([lambda: x @ y], 10, device)[0]


def clock(side: Callable[[], object]) -> float:
    began = time.perf_counter()
    side()
    return time.perf_counter() - began
