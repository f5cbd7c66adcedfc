# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The K2 slice in every kind of layout of two GPUs: step time, and communication left exposed.

    CUDA_DEVICE_MAX_CONNECTIONS=32 python3 benchmarks/layouts.py [--turns 2] [--trace FOLDER]

Forward and backward of four micro-batches of 4096 tokens a data-parallel rank, all layouts in turn
on the same machine; every expert-parallel rank holds 24 experts. `exposed` is the time in which
NCCL ran and nothing else did, on the last rank, in one profiled step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slice import trace_option, turns_that_go_well

PP, EP = ("--layers", "4", "--pp", "2"), ("--ep", "2")
REDUCE = ("--set", "parallel.overlap_grad_reduce=true")
OVERLAP = ("--set", "parallel.overlap_moe_expert_parallel_comm=true")
DELAY = ("--set", "parallel.delay_wgrad_compute=true")
LAYOUTS: dict[str, tuple[str, ...]] = {
    "DP2": (),
    "DP2, overlapped reduce": REDUCE,
    "TP2": ("--tp", "2"),
    "PP2": PP,
    "PP2 x VPP2": (*PP, "--vpp", "2"),
    "EP2": EP,
    "EP2, overlap": (*EP, *OVERLAP),
    "EP2, overlap, delayed": (*EP, *OVERLAP, *DELAY),
    "EP2 k2": (*EP, "--set", "memory.preset=k2"),
    "EP2 k2, overlap, delayed": (*EP, *OVERLAP, *DELAY, "--set", "memory.preset=k2"),
    "EP2 k2-lean": (*EP, "--set", "memory.preset=k2-lean"),
    "EP2 k2-lean, overlap, delayed": (*EP, *OVERLAP, *DELAY, "--set", "memory.preset=k2-lean"),
}


def main() -> None:
    """Measure all layouts in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", help="names of layouts, separated by semicolons")
    parser.add_argument("--trace", type=Path, help="folder for a trace of each layout")
    args = parser.parse_args()
    names = args.only.split(";") if args.only else list(LAYOUTS)
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(args.turns):
        given = {
            name: ["ours.py", *LAYOUTS[name], "--exposed", *trace_option(args.trace, name)]
            for name in names
        }
        for name, run in turns_that_go_well(given, 2):
            found.setdefault(name, []).append(run)
            print(line(name, [run]), flush=True)
    print(f"command: python3 {' '.join(sys.argv)}")
    device = next(iter(found.values()))[0]["device"]
    print(
        f"machine: {device} x 2; torch {version('torch')}, megatron-core "
        f"{version('megatron-core')}, "
        f"CUDA_DEVICE_MAX_CONNECTIONS={os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS')}"
    )
    print(
        f"{'':32s}{'ms':>9s}{'tok/s/GPU':>11s}{'comm. ms':>10s}{'exposed ms':>12s}{'peak GiB':>10s}"
    )
    for name, runs in found.items():
        print(line(name, runs))


def line(name: str, runs: list[dict[str, Any]]) -> str:
    """A layout's medians."""
    seconds, communicating, exposed = (
        statistics.median(run[key] for run in runs)
        for key in ("seconds", "communication_ms", "exposed_ms")
    )
    return (
        f"{name:32s}{1e3 * seconds:9.1f}{runs[0]['tokens'] / seconds / 2:11.0f}"
        f"{communicating:10.1f}{exposed:12.1f}{runs[0]['peak_gib']:10.1f}"
    )


if __name__ == "__main__":
    main()
