# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What both sides of the slice benchmark share: the shape, the data, the clock."""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

SEQ_LENGTH = 4096
VOCAB_SIZE = 32768
INIT_STD = 0.006


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Layers and layout of the slice; every expert-parallel rank holds 24 experts."""

    layers: int
    tp: int
    pp: int
    vpp: int
    ep: int

    @staticmethod
    def of(args: argparse.Namespace) -> Slice:
        """From the command line."""
        names = ("layers", "tp", "pp", "vpp", "ep")
        return Slice(**{name: getattr(args, name) for name in names})

    @property
    def experts(self) -> int:
        """Experts of a layer over all ranks."""
        return 24 * self.ep


def add_slice_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that both sides take."""
    for name, value in (("layers", 2), ("tp", 1), ("pp", 1), ("vpp", 1), ("ep", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--micro-batches", type=int, default=4, help="of each data-parallel rank")
    parser.add_argument("--steps", type=int, default=6, help="measured, after three that are not")


def wait_for_turn() -> None:
    """Return when slice.py says so, or at once where nobody started this side in turns."""
    if "BENCHMARK_IN_TURNS" in os.environ:
        sys.stdin.readline()


def measure(
    step: Callable[[list[torch.Tensor]], object], shape: Slice, args: argparse.Namespace
) -> dict[str, Any]:
    """Median seconds of a step on random tokens, the same for both sides.

    Args:
        step: takes the micro-batches, int64 [1, SEQ_LENGTH] on the GPU.
    """
    generator = torch.Generator().manual_seed(1 + dist.get_rank() // (shape.tp * shape.pp))
    size = (args.micro_batches, 1, SEQ_LENGTH)
    batches = list(torch.randint(VOCAB_SIZE, size, generator=generator).cuda())
    # Python's collector would stop the host at moments that depend on how much it has imported.
    gc.collect()
    gc.freeze()
    resident = torch.cuda.memory_allocated()
    seconds, launches = [], []
    for index in range(args.steps + 3):
        torch.cuda.synchronize()
        dist.barrier()
        began = time.perf_counter()
        step(batches)
        launched = time.perf_counter() - began
        torch.cuda.synchronize()
        if index >= 3:
            seconds.append(time.perf_counter() - began)
            launches.append(launched)
    data_size = dist.get_world_size() // (shape.tp * shape.pp)
    return {
        "seconds": statistics.median(seconds),
        "launch_seconds": statistics.median(launches),
        "tokens": data_size * args.micro_batches * SEQ_LENGTH,
        "resident_gib": resident / 2**30,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "device": torch.cuda.get_device_name(),
    }
