# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizer state in host memory: what a step takes with none, half and all of it there.

    python3 benchmarks/host_state.py [--turns 2] [--fractions 0,0.5,1] [--layers 2]

One GPU, training steps of the K2 slice with AdamW and with MuonClip, all fractions in turn on the
same machine; medians over the turns. A single rank has the state of all its parameters; of a run,
it is divided by the data-parallel ranks. `resident` is what the GPU holds between steps, `state`
the bytes that go each way in a step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from importlib.metadata import version
from typing import Any

from slice import OPTIMIZERS, sides_that_go_well

NAMES = ("adamw", "muon")


def main() -> None:
    """Measure all fractions in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--fractions", default="0,0.5,1")
    args = parser.parse_args()
    print(f"command: python3 {' '.join(sys.argv)}")
    key = "optimizer.optimizer_offload_fraction"
    shape = ["--layers", str(args.layers), "--optimizers", ",".join(NAMES)]
    given = {
        fraction: ["ours.py", *shape, "--set", f"{key}={fraction}"]
        for fraction in args.fractions.split(",")
    }
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for _ in range(args.turns):
        for fraction, runs in sides_that_go_well(given, 1):
            for run in runs:
                found.setdefault((run["optimizer"], fraction), []).append(run)
            print(fraction, *(f"{1e3 * run['seconds']:.1f} ms" for run in runs), flush=True)
    any_run = next(iter(found.values()))[0]
    print(
        f"machine: {any_run['device']}; torch {version('torch')}, megatron-core "
        f"{version('megatron-core')}, "
        f"CUDA_DEVICE_MAX_CONNECTIONS={os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS')}"
    )
    show(found)


def show(found: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """The table."""
    titles = ("ms", "ratio", "resident GiB", "peak GiB", "state GB", "GB/s")
    print(f"{'':20s}{'fraction':>9s}" + "".join(f"{title:>14s}" for title in titles))
    for (optimizer, fraction), runs in sorted(found.items()):
        seconds = statistics.median(run["seconds"] for run in runs)
        base = found.get((optimizer, "0"))
        ratio = seconds / statistics.median(run["seconds"] for run in base) if base else None
        moved = (runs[-1]["offload"] or {}).get("offload/state_bytes", 0.0) / 1e9
        values = (1e3 * seconds, ratio, runs[-1]["resident_gib"], runs[-1]["peak_gib"])
        text = "".join(
            f"{'':14s}" if value is None else f"{value:14.3f}"
            for value in (*values, moved, moved / seconds)
        )
        print(f"{OPTIMIZERS[optimizer]:20s}{fraction:>9s}{text}")


if __name__ == "__main__":
    main()
