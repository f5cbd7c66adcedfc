# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A K2 slice with k2_megatron and with plain megatron-core, in turn on the same machine.

    python3 benchmarks/slice.py [--turns 2] [--gpus 1] [--layers 2] [--ep 1] [--pp 1] ...

Each side is a process of its own that measures in its turn (A B A B) and holds no GPU memory
before it; all are started at once, because importing takes longer than measuring. The table has
the median over turns of the median step. TFLOP/s by the formula of k2_megatron/planner/flops.py
for both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from k2_megatron.config.presets import model_from_preset
from k2_megatron.launch.ports import free_port
from k2_megatron.planner.flops import model_flops_per_token

HERE = Path(__file__).parent
SIDES = {"plain megatron-core": "plain_core.py", "k2_megatron": "ours.py"}
OPTIMIZERS = {
    "none": "forward and backward",
    "adamw": "step with AdamW",
    "muon": "step with Muon",
}

SIDE_SECONDS, OTHERS_SECONDS = 300.0, 10.0


class SideFailedError(Exception):
    """A rank of one side ended with an error; the text has the end of what it said."""


def main() -> None:
    """Run the turns and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--optimizers", default="none", help=f"of {','.join(OPTIMIZERS)}")
    args, rest = parser.parse_known_args()
    optimizers = args.optimizers.split(",")
    results: dict[tuple[str, str], list[dict[str, Any]]] = {
        (optimizer, side): [] for optimizer in optimizers for side in SIDES
    }
    waiting = [
        (side, start([script, "--optimizers", args.optimizers, *rest], args.gpus))
        for _ in range(args.turns)
        for side, script in SIDES.items()
    ]
    for side, ranks in waiting:
        for found in turn(side, ranks):
            results[found["optimizer"], side].append(found)
            print(f"{side}, {found['optimizer']}: {1e3 * found['seconds']:.1f} ms", flush=True)
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
    device = next(iter(results.values()))[0]["device"]
    print(
        f"machine: {device} x {args.gpus}; torch {version('torch')}, "
        f"megatron-core {version('megatron-core')}, "
        f"CUDA_DEVICE_MAX_CONNECTIONS={os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS')}"
    )
    print(
        f"{'':44s}{'ms':>9s}{'tok/s/GPU':>11s}{'TFLOP/s/GPU':>13s}{'peak GiB':>10s}  "
        "ms by turn (launched by the host)"
    )
    for (optimizer, side), runs in results.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        rate = runs[0]["tokens"] / seconds / args.gpus
        turns = "  ".join(
            f"{1e3 * run['seconds']:.1f} ({1e3 * run['launch_seconds']:.1f})" for run in runs
        )
        print(
            f"{OPTIMIZERS[optimizer]:22s}{side:22s}{1e3 * seconds:9.1f}{rate:11.0f}"
            f"{rate * flops / 1e12:13.1f}{runs[0]['peak_gib']:10.1f}  {turns}"
        )


def option(rest: list[str], name: str, default: int) -> int:
    """The value of an option that is passed through."""
    return int(rest[rest.index(name) + 1]) if name in rest else default


def trace_option(folder: Path | None, name: str) -> list[str]:
    """What asks a side for a trace; the folder is made.

    Args:
        folder: None: no trace is wanted.
        name: of the side.
    """
    if folder is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    return ["--trace", str(folder / f"{name.replace(' ', '_').replace(',', '')}.json.gz")]


def start(arguments: Sequence[str], num_gpus: int) -> list[subprocess.Popen[str]]:
    """Start one side on all GPUs; each rank imports and then waits for its turn."""
    command = [sys.executable, "-W", "ignore", str(HERE / arguments[0]), *arguments[1:]]
    port, ranks = free_port(), []
    for rank in range(num_gpus):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(num_gpus),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "BENCHMARK_IN_TURNS": "1",
        }
        ranks.append(
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return ranks


def outputs_of(name: str, ranks: list[subprocess.Popen[str]]) -> list[list[dict[str, Any]]]:
    """Let one side measure, and read the JSON lines of every rank.

    Raises:
        SideFailedError: a rank ended with an error, or none in SIDE_SECONDS.
    """
    for process in ranks:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended before its turn, and told why
            process.stdin.write("go\n")
            process.stdin.flush()
    with ThreadPoolExecutor(len(ranks)) as readers:
        reading = readers.map(lambda process: process.communicate(), ranks)
        _see_to_their_end(ranks)
        outputs = list(reading)
    # All of them: the first is often one that another has left.
    failed = [
        f"rank {rank}, code {process.returncode}: {errors[-2000:]}"
        for rank, (process, (_, errors)) in enumerate(zip(ranks, outputs, strict=True))
        if process.returncode
    ]
    if failed:
        raise SideFailedError("\n".join([f"{name} failed:", *failed]))
    return [
        [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        for text, _ in outputs
    ]


def _see_to_their_end(ranks: list[subprocess.Popen[str]]) -> None:
    """Kill what hangs: the others soon after one has failed, all of them after SIDE_SECONDS.

    A rank in a collective that another has left would wait for minutes and keep its memory.
    """
    deadline = time.monotonic() + SIDE_SECONDS
    while any(process.poll() is None for process in ranks):
        if any(process.returncode for process in ranks):
            deadline = min(deadline, time.monotonic() + OTHERS_SECONDS)
        if time.monotonic() > deadline:
            for process in ranks:
                process.kill()
            return
        time.sleep(0.1)


def turn(name: str, ranks: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
    """Let one side measure, and read the JSON lines of its last rank."""
    return outputs_of(name, ranks)[-1]


def sides_that_go_well(
    sides: Mapping[str, Sequence[str]], num_gpus: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Start all sides, let each measure in its turn, and give (name, its JSON lines).

    A side that fails is said and left out; where all do, the command ends.

    Args:
        sides: script and arguments by name.
        num_gpus: one process each.
    """
    failed = 0
    for name, ranks in [(name, start(side, num_gpus)) for name, side in sides.items()]:
        try:
            runs = turn(name, ranks)
        except SideFailedError as error:
            print(error, flush=True)
            failed += 1
            continue
        yield name, runs
    if failed == len(sides):
        raise SystemExit("every side failed")


def turns_that_go_well(
    sides: Mapping[str, Sequence[str]], num_gpus: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """`sides_that_go_well`, with the one JSON line of each."""
    for name, (run,) in sides_that_go_well(sides, num_gpus):
        yield name, run


if __name__ == "__main__":
    main()
