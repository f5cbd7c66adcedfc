# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Activations in host memory: what stays on the GPU, and what it costs.

    python3 benchmarks/offload.py [--turns 2] [--layers 8] [--vpp 4] [--micro-batches 8]
    python3 benchmarks/offload.py --gpus 1 --layers 4     no pipeline: layers travel one by one
    python3 benchmarks/offload.py --quick     on a CPU: bytes alone, of the tests' model

Two GPUs are a pipeline of two with virtual stages. `k2-full` beside `k2`, and megatron-core's own
offload beside plain megatron-core with the same recomputation, in turn on the same machine;
medians over the turns. With CUDA_DEVICE_MAX_CONNECTIONS=1 all streams share one queue to the GPU,
and a copy that waits stops the others: use 8, or 32 with overlapped expert communication.

MiB a forward: what each further forward of the first rank's warm-up adds, from the fourth on. With
everything on the GPU it is what a micro-batch holds; with offload, what stays of it while it is
neither computed nor under way. Added: the peak over what is there before a step, weights,
gradients and, of ours alone, the optimizer's state. Computing: time in which kernels other than
NCCL's ran, on the last rank in one profiled step; copies make them slower.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slice import trace_option, turns_that_go_well

from k2_megatron.planner.schedule import warmup_forwards

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "tests" / "distributed" / "small.yaml"
RECOMPUTED = "layernorm,mla_up_proj,moe_act"
OFFLOADED = "attn_norm,core_attn,attn_proj,mlp_norm,expert_fc1,moe_act"
SIDES = {
    "megatron-core": ["plain_core.py", "--recompute", RECOMPUTED],
    "megatron-core offload": ["plain_core.py", "--recompute", RECOMPUTED, "--offload", OFFLOADED],
    "k2": ["ours.py", "--set", "memory.preset=k2"],
    "k2-full": ["ours.py", "--set", "memory.preset=k2-full"],
}
BASES = {"megatron-core offload": "megatron-core", "k2-full": "k2"}
COPY = """
import json, torch
size = 256 * 2**20
there = torch.empty(size, dtype=torch.uint8, pin_memory=True)
here = torch.empty(size, dtype=torch.uint8, device="cuda")
found = []
for a, b in ((there, here), (here, there)):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a.copy_(b, non_blocking=True)
    begin.record()
    for _ in range(8):
        a.copy_(b, non_blocking=True)
    end.record()
    end.synchronize()
    found.append(8 * size / begin.elapsed_time(end) / 1e6)
print(json.dumps(found))
"""


def main() -> None:
    """Measure all sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=2, choices=(1, 2))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vpp", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--sides", default=",".join(SIDES), help="some of them")
    parser.add_argument("--trace", type=Path, help="folder for a trace of each side")
    parser.add_argument("--quick", action="store_true", help="bytes of a small model on the CPU")
    args = parser.parse_args()
    print(f"command: python3 {' '.join(sys.argv)}")
    print(f"torch {version('torch')}, megatron-core {version('megatron-core')}")
    if args.quick:
        quick()
        return
    args.vpp = args.vpp if args.gpus > 1 else 1
    shape = ["--pp", str(args.gpus), "--vpp", str(args.vpp), "--layers", str(args.layers)]
    shape += ["--micro-batches", str(args.micro_batches), "--held", "--exposed"]
    sides = args.sides.split(",")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(args.turns):
        given = {name: [*SIDES[name], *shape, *trace_option(args.trace, name)] for name in sides}
        for name, run in turns_that_go_well(given, args.gpus):
            found[name].append(run)
            print(f"{name}: {1e3 * run['seconds']:.1f} ms", json.dumps(run), flush=True)
    rates = subprocess.run(
        [sys.executable, "-c", COPY], capture_output=True, text=True, check=True
    ).stdout
    found = {name: runs for name, runs in found.items() if runs}
    device = next(iter(found.values()))[0]["device"]
    connections = os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS")
    print(f"machine: {device} x {args.gpus}; CUDA_DEVICE_MAX_CONNECTIONS={connections}")
    print("copies alone: {:.1f} GB/s out, {:.1f} GB/s in".format(*json.loads(rates)))
    show(found, args)


def show(found: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> None:
    """The table."""
    seconds = {name: statistics.median(run["seconds"] for run in found[name]) for name in found}
    stays = {name: further_mib(runs[-1], args) for name, runs in found.items()}
    print(
        f"{'':24s}{'MiB/forward':>12s}{'share':>8s}{'added GiB':>10s}{'ms':>9s}{'ratio':>8s}"
        f"{'computing':>10s}"
        f"{'GB out':>8s}{'GB/s':>7s}{'GB stayed':>10s}"
        f"{'wait ms out':>12s}{'in':>6s}{'host GiB':>10s}"
    )
    for name, runs in found.items():
        base = BASES.get(name)
        compared = base in found
        share = f"{stays[name] / stays[base]:8.3f}" if compared else f"{'':8s}"
        ratio = f"{seconds[name] / seconds[base]:8.3f}" if compared else f"{'':8s}"
        added = runs[-1]["peak_gib"] - runs[-1]["resident_gib"]
        text = f"{name:24s}{stays[name]:12.1f}{share}{added:10.2f}"
        text += f"{1e3 * seconds[name]:9.1f}{ratio}{runs[-1]['computation_ms']:10.1f}"
        moved = runs[-1].get("offload")
        if moved:
            out = moved["offload/sent_bytes"] / 1e9
            text += f"{out:8.2f}{out / seconds[name]:7.1f}"
            text += f"{moved['offload/stayed_bytes'] / 1e9:10.2f}"
            text += f"{1e3 * moved['offload/wait_out_seconds']:12.1f}"
            text += f"{1e3 * moved['offload/wait_in_seconds']:6.1f}"
            text += f"{moved['offload/host_high_water_bytes'] / 2**30:10.2f}"
        print(text)


def further_mib(run: dict[str, Any], args: argparse.Namespace) -> float:
    """What a forward adds late in the first rank's warm-up; its chunks are alike but for one.

    Not the last forwards: their backward follows at once, so that they have no time to travel.
    Without a pipeline no forward waits for another's backward: what one on its own holds.
    """
    if args.gpus == 1:
        return float(run["held_mib"][-1])
    warmup = warmup_forwards(0, args.gpus, args.vpp, args.micro_batches, False)
    seen = run["forwards_mib"][3:warmup]
    return float((seen[-1] - seen[0]) / (len(seen) - 1)) if len(seen) > 1 else float("nan")


def quick() -> None:
    """Bytes that travel in the tests' small model, PP2 x VPP2, by room on the host."""
    sys.path.insert(0, str(ROOT))
    from tests.distributed.harness import run_ranks

    layout = ["pipeline_model_parallel_size=2", "virtual_pipeline_model_parallel_size=2"]
    layout.append("pipeline_model_parallel_layout=Et|t|t|ttL")
    base = ["precision.dtype=bf16", "schedule.seq_length=128"]
    base += [f"parallel.{one}" for one in layout]
    titles = ("sent", "stayed", "pool", "high water")
    print(
        f"{'bytes, rank 0':28s}" + "".join(f"{title:>12s}" for title in titles) + f"{'loss':>10s}"
    )
    for options in (["k2"], ["k2-full"], ["k2-full", "50%"], ["k2-full", "0%, 100%"]):
        overrides = [f"memory.preset={options[0]}"]
        overrides += [f"memory.host_budget='{one}'" for one in options[1:]]
        run = run_ranks(
            "tests.distributed.offload_jobs.train_varied",
            2,
            config_path=str(SMALL),
            overrides=[*base, *overrides],
            counts=[8],
            delayed=False,
        )[0]
        moved = run.get("traffic", {})
        numbers = [moved.get(name, 0) for name in ("sent", "stayed")]
        numbers += [run.get("pool", 0), run.get("high_water", 0)]
        text = "".join(f"{number:12.0f}" for number in numbers)
        print(f"{' '.join(options):28s}{text}{run['losses'][0]:10.6f}")


if __name__ == "__main__":
    main()
