# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The whole recipe beside plain megatron-core: training steps of the K2 slice, in turn.

    python3 benchmarks/whole.py [--turns 2] [--layers 3] [--micro-batches 8]
    python3 benchmarks/whole.py --gpus 2 --pp 2 --vpp 2 --layers 4
    python3 benchmarks/whole.py --gpus 2 --ep 2

Ours: MuonClip with QK-Clip and the memory presets. megatron-core's: its best flags with each of its
recomputations, and its defaults, both with Muon from emerging-optimizers, matrix by matrix, and
AdamW for the rest; over data-parallel ranks, where that optimizer is not sharded, both sides
without their optimizers: there the peak is what comes on top of what stays between steps, of which
ours has AdamW's masters and megatron-core's nothing. MFU is of what a bf16 product of two
8192 x 8192 reaches on this machine.

The last two columns hold each of ours against megatron-core's fastest, and against its fastest that
takes no more memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from importlib.metadata import version
from typing import Any

import torch
from activation_memory import CORE as ITS_RECOMPUTATIONS
from calls import product_flops
from slice import sides_that_go_well

from k2_megatron.config.presets import model_from_preset
from k2_megatron.planner.flops import model_flops_per_token

CORE = {
    **ITS_RECOMPUTATIONS,
    "megatron-core full": ["plain_core.py", "--recompute", "full"],
    "megatron-core defaults": ["plain_core.py", "--defaults"],
}
PRESETS = ("none", "k2", "k2-lean", "k2-full")
OURS = {preset: ["ours.py", "--together", "--set", f"memory.preset={preset}"] for preset in PRESETS}
SIDES = CORE | OURS


def main() -> None:
    """Measure all sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=1)
    for name, value in (("layers", 3), ("pp", 1), ("vpp", 1), ("ep", 1), ("micro-batches", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--sides", default=",".join(SIDES), help="some of them")
    args = parser.parse_args()
    print(f"command: python3 {' '.join(sys.argv)}")
    shape = [f"--{name}={getattr(args, name)}" for name in ("layers", "pp", "vpp", "ep")]
    shape += [f"--micro-batches={args.micro_batches}", "--held"]
    # Muon of the peer is for one data-parallel rank.
    optimizers = ["none", "muon"] if args.gpus == args.pp else ["none"]
    shape += ["--optimizers", ",".join(optimizers)]
    shape += ["--exposed"] if args.gpus > 1 else []
    names = args.sides.split(",")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    given = {name: [*SIDES[name], *shape] for name in names}
    for _ in range(args.turns):
        for name, runs in sides_that_go_well(given, args.gpus):
            for run in runs:
                found.setdefault(name, {}).setdefault(run["optimizer"], []).append(run)
            times = (f"{1e3 * run['seconds']:.1f} ms" for run in runs)
            print(name, *times, json.dumps(runs), flush=True)
    ceiling = product_flops(torch.device("cuda")) / 1e12
    any_run = next(iter(found.values()))[optimizers[-1]][0]
    print(
        f"machine: {any_run['device']} x {args.gpus}; torch {version('torch')}, megatron-core "
        f"{version('megatron-core')}, "
        f"CUDA_DEVICE_MAX_CONNECTIONS={os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS')}; "
        f"bf16 product {ceiling:.0f} TFLOP/s"
    )
    show([row(name, found[name], args, ceiling) for name in names if name in found])


def row(
    name: str, runs: dict[str, list[dict[str, Any]]], args: argparse.Namespace, ceiling: float
) -> dict[str, Any]:
    """One side's medians."""
    steps = runs["muon" if "muon" in runs else "none"]
    seconds, passes = (
        statistics.median(run["seconds"] for run in some) for some in (steps, runs["none"])
    )
    rate = steps[0]["tokens"] / seconds / args.gpus
    tflops = rate * flops_per_token(args) / 1e12
    offload = steps[-1].get("offload") or {}
    return {
        "name": name,
        "ms": 1e3 * seconds,
        "rate": rate,
        "tflops": tflops,
        "mfu": tflops / ceiling,
        "peak": max(
            run["peak_gib"] - (0 if "muon" in runs else run["resident_gib"]) for run in steps
        ),
        # Of the pipeline's first rank at its fullest, or of one forward.
        "held": max([*steps[-1]["forwards_mib"], *steps[-1]["held_mib"], 0.0]),
        "optimizer": 1 - passes / seconds,
        "exposed": statistics.median(run.get("exposed_ms", 0.0) for run in steps),
        "wait": 1e3 * sum(offload.get(f"offload/wait_{way}_seconds", 0.0) for way in ("out", "in")),
    }


def flops_per_token(args: argparse.Namespace) -> float:
    """Of the slice, forward and backward, by k2_megatron/planner/flops.py."""
    model = model_from_preset(
        "kimi-k2",
        num_layers=args.layers,
        num_experts=24 * args.ep,
        first_k_dense_replace=0,
        vocab_size=32768,
    )
    return model_flops_per_token(model, 4096)


def show(rows: list[dict[str, Any]]) -> None:
    """The table."""
    core = [one for one in rows if one["name"] in CORE]
    fastest = max((one["rate"] for one in core), default=float("nan"))
    titles = "ms tok/s/GPU TFLOP/s MFU peak_GiB held_MiB optimizer exposed wait_ms of_fastest"
    print(f"{'':24s}" + "".join(f"{title:>11s}" for title in (*titles.split(), "same_mem.")))
    for one in rows:
        within = [other["rate"] for other in core if other["peak"] <= one["peak"]]
        ratios = f"{one['rate'] / fastest:11.3f}"
        ratios += f"{one['rate'] / max(within):11.3f}" if within else f"{'none':>11s}"
        print(
            f"{one['name']:24s}{one['ms']:11.1f}{one['rate']:11.0f}{one['tflops']:11.1f}"
            f"{one['mfu']:11.3f}{one['peak']:11.2f}{one['held']:11.1f}{one['optimizer']:11.1%}"
            f"{one['exposed']:11.1f}{one['wait']:11.1f}{ratios}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
