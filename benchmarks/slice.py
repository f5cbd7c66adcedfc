# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A K2 slice with k2_megatron and with plain megatron-core, in turn on the same machine.

    python3 benchmarks/slice.py [--turns 2] [--gpus 1] [--layers 2] [--ep 1] [--pp 1] ...

Each side is a process of its own, started alternately; the table has the median over turns of the
median step. TFLOP/s by the formula of k2_megatron/planner/flops.py for both.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from k2_megatron.config.presets import model_from_preset
from k2_megatron.planner.flops import model_flops_per_token

HERE = Path(__file__).parent
SIDES = {
    "plain megatron-core": ["plain_core.py"],
    "k2_megatron": ["ours.py"],
    "plain, recompute": ["plain_core.py", "--recompute", "layernorm,mla_up_proj,moe_act"],
    "k2_megatron, whole step": ["ours.py", "--step"],
}


def main() -> None:
    """Run the turns and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--sides", default=",".join(map(str, range(len(SIDES)))))
    args, rest = parser.parse_known_args()
    chosen = [list(SIDES)[int(index)] for index in args.sides.split(",")]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for _ in range(args.turns):
        for name in chosen:
            results[name].append(run([*SIDES[name], *rest], args.gpus))
    layers, experts = option(rest, "--layers", 2), 24 * option(rest, "--ep", 1)
    model = model_from_preset(
        "kimi-k2",
        num_layers=layers,
        num_experts=experts,
        first_k_dense_replace=0,
        vocab_size=32768,
    )
    flops = model_flops_per_token(model, 4096)
    print(f"command: python3 {' '.join(sys.argv)}")
    print(
        f"machine: {results[chosen[0]][0]['device']} x {args.gpus}; torch {version('torch')}, "
        f"megatron-core {version('megatron-core')}, "
        f"CUDA_DEVICE_MAX_CONNECTIONS={os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS')}"
    )
    print(f"{'':28s}{'ms':>9s}{'tok/s/GPU':>11s}{'TFLOP/s/GPU':>13s}{'peak GiB':>10s}  ms by turn")
    for name in chosen:
        runs = results[name]
        seconds = statistics.median(run["seconds"] for run in runs)
        rate = runs[0]["tokens"] / seconds / args.gpus
        turns = " ".join(f"{1e3 * run['seconds']:.1f}" for run in runs)
        print(
            f"{name:28s}{1e3 * seconds:9.1f}{rate:11.0f}{rate * flops / 1e12:13.1f}"
            f"{runs[0]['peak_gib']:10.1f}  {turns}"
        )


def option(rest: list[str], name: str, default: int) -> int:
    """The value of an option that is passed through."""
    return int(rest[rest.index(name) + 1]) if name in rest else default


def run(arguments: list[str], num_gpus: int) -> dict[str, Any]:
    """Start one side on all GPUs and read its JSON line."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-W", "ignore", str(HERE / arguments[0]), *arguments[1:]]
    ranks = []
    for rank in range(num_gpus):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_gpus),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks.append(
            subprocess.Popen(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=300) for process in ranks]
    for process, (_, errors) in zip(ranks, outputs, strict=True):
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors[-4000:]}")
    lines = [line for line in outputs[-1][0].splitlines() if line.startswith("{")]
    result: dict[str, Any] = json.loads(lines[-1])
    return result


if __name__ == "__main__":
    main()
