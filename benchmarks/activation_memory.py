# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What each memory preset holds of a layer, and what it costs, beside plain megatron-core's.

    python3 benchmarks/activation_memory.py [--turns 2] [--layers 2,3] [--gpus 1 --ep 1]
    python3 benchmarks/activation_memory.py --hot 3     every token at the same three of 24 experts
    python3 benchmarks/activation_memory.py --quick     on a CPU: bytes alone, of the tests' model

MiB of a layer are slopes: what the second of two forwards holds, with one layer more minus with
one less, so that head, loss and what is made once are not in it. Step times are forward and
backward of the micro-batches with the most layers, in turn on the same machine; medians over the
turns. Planned: the table of k2_megatron/planner/activations.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slice import turns_that_go_well

from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.memory.policy import PRESETS, policy_of
from k2_megatron.planner.activations import layer_tensors
from k2_megatron.planner.job import job_of

ROOT = Path(__file__).parents[1]
SLICE = ROOT / "examples" / "configs" / "k2-slice-h100.yaml"
SMALL = ROOT / "tests" / "distributed" / "small.yaml"
OURS = ("none", "k2", "k2-lean")
NORMS_AND_UP = "layernorm,mla_up_proj"
CORE = {
    "megatron-core": ["plain_core.py"],
    "megatron-core moe_act": ["plain_core.py", "--recompute", f"{NORMS_AND_UP},moe_act"],
    "megatron-core moe": ["plain_core.py", "--recompute", f"{NORMS_AND_UP},moe"],
}
SIDES = {
    **CORE,
    **{preset: ["ours.py", "--set", f"memory.preset={preset}"] for preset in OURS},
}


def main() -> None:
    """Measure all sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--layers", default="2,3", help="numbers of layers, the last two compared")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--ep", type=int, default=1)
    parser.add_argument("--hot", type=int, default=0, help="experts that every token goes to")
    parser.add_argument("--sides", default=",".join(SIDES), help="some of them")
    parser.add_argument("--quick", action="store_true", help="bytes of a small model on the CPU")
    args = parser.parse_args()
    print(f"command: python3 {' '.join(sys.argv)}")
    print(f"torch {version('torch')}, megatron-core {version('megatron-core')}")
    if args.quick:
        quick()
        return
    layers = [int(number) for number in args.layers.split(",")]
    sides = args.sides.split(",")
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for _ in range(args.turns):
        for count in layers:
            shape = ["--layers", str(count), "--ep", str(args.ep), "--hot", str(args.hot), "--held"]
            given = {name: [*SIDES[name], *shape] for name in sides}
            went_well = []
            for name, run in turns_that_go_well(given, args.gpus):
                went_well.append(name)
                found.setdefault((name, count), []).append(run)
                seconds, held = 1e3 * run["seconds"], run["held_mib"]
                print(f"{name}, {count} layers: {seconds:.1f} ms, {held} MiB", flush=True)
            sides = went_well
    print(f"machine: {found[sides[0], layers[0]][0]['device']} x {args.gpus}")
    show(found, sides, layers, args)


def show(
    found: dict[tuple[str, int], list[dict[str, Any]]],
    sides: list[str],
    layers: list[int],
    args: argparse.Namespace,
) -> None:
    """The table: slopes over layers, times of the deepest."""
    least, most = layers[-2:]
    seconds = {
        name: statistics.median(run["seconds"] for run in found[name, most]) for name in sides
    }
    head = f"{'':26s}{'MiB/layer':>10s}{'planned':>9s}{'MiB/forward':>12s}"
    print(f"{head}{'step GiB':>10s}{'ms':>9s}{'of core':>9s}{'of none':>9s}")
    for name in sides:
        held = {count: found[name, count][-1]["held_mib"][1] for count in (least, most)}
        slope = (held[most] - held[least]) / (most - least)
        planned = f"{planned_mib(name, args.ep):9.0f}" if name in PRESETS else f"{'':9s}"
        # Over what is there before: ours has the optimizer's masters, plain megatron-core nothing.
        peak = max(run["peak_gib"] - run["resident_gib"] for run in found[name, most])
        rates = "".join(
            f"{seconds[name] / seconds[base]:9.3f}" if base in seconds else f"{'':9s}"
            for base in ("megatron-core", "none")
        )
        print(
            f"{name:26s}{slope:10.1f}{planned}{held[most]:12.1f}{peak:10.2f}"
            f"{1e3 * seconds[name]:9.1f}{rates}"
        )


def planned_mib(preset: str, ep: int) -> float:
    """MiB of an MoE layer of the slice, by the planner's table."""
    overrides = [f"model.num_experts={24 * ep}", f"parallel.expert_model_parallel_size={ep}"]
    return sum(planned_bytes(load_config(SLICE, overrides), preset, ep).values()) / 2**20


def planned_bytes(
    config: Config, preset: str, gpus: int = 1, *, on_gpu: bool = True
) -> dict[str, float]:
    """Bytes of each tensor of an MoE layer."""
    return {
        tensor.name: tensor.device_bytes(policy_of(PRESETS[preset], tensor.name))
        for tensor in layer_tensors(job_of(config, gpus, on_gpu=on_gpu), dense=False)
    }


def quick() -> None:
    """Bytes of live storages of an MoE layer, by operation, and the planner's of its tensors."""
    sys.path.insert(0, str(ROOT))
    from tests.distributed.harness import run_ranks

    print(f"{'':10s}{'bytes/layer live':>18s}{'planned':>9s}")
    for preset in OURS:
        totals = []
        for count in (3, 4):
            overrides = [f"memory.preset={preset}", f"model.num_layers={count}"]
            (run,) = run_ranks(
                "tests.distributed.memory_jobs.live_storages",
                1,
                config_path=str(SMALL),
                overrides=["precision.dtype=bf16", *overrides],
            )
            totals.append(sum(size for _, size in run["alive"]))
        config = load_config(SMALL, ["precision.dtype=bf16"])
        planned = sum(planned_bytes(config, preset, on_gpu=False).values())
        print(f"{preset:10s}{totals[1] - totals[0]:18d}{planned:9.0f}")
    print("live: attention that is not fused, norms of several operations and the router's own")


if __name__ == "__main__":
    main()
