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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from exposed import profiled

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
    parser.add_argument("--hot", type=int, default=0, help="experts that every token goes to")
    parser.add_argument("--held", action="store_true", help="measure what forwards hold, too")
    parser.add_argument("--exposed", action="store_true", help="measure communication, too")
    parser.add_argument("--trace", type=Path, help="with --exposed: where its trace goes")


def wait_for_turn() -> None:
    """Return when slice.py says so, or at once where nobody started this side in turns."""
    if "BENCHMARK_IN_TURNS" in os.environ and sys.stdin.readline() != "go\n":
        raise SystemExit("slice.py is gone")


def draw_on_gpu() -> None:
    """Let k2_megatron draw its weights by the GPU's generators, to save time. Once a process.

    The same model in every layout, as theirs, but another than a CPU draws.
    """
    from k2_megatron.model import initialise

    fill = initialise._fill
    # The target's own: threads do not know which GPU is the rank's.
    initialise._fill = lambda block, seed, std: fill(block, seed, std, block.target.device)


def measure(
    step: Callable[[list[torch.Tensor]], object],
    shape: Slice,
    args: argparse.Namespace,
    chunks: Sequence[Any] = (),
) -> dict[str, Any]:
    """Median seconds of a step on random tokens, the same for both sides, and bytes held.

    Args:
        step: takes the micro-batches, int64 [1, SEQ_LENGTH] on the GPU.
        chunks: the model.
        args: micro-batches and steps; with `held`, what each forward of a step holds and, without
            a pipeline, each of two forwards on their own.
    """
    heat(chunks, args.hot)
    generator = torch.Generator().manual_seed(1 + dist.get_rank() // (shape.tp * shape.pp))
    size = (args.micro_batches, 1, SEQ_LENGTH)
    batches = list(torch.randint(VOCAB_SIZE, size, generator=generator).cuda())
    # Python's collector would stop the host at moments that depend on how much it has imported.
    gc.collect()
    gc.freeze()
    resident = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()  # building holds weights twice for a moment
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
    peak = torch.cuda.max_memory_allocated()
    seen = {}
    if args.exposed:
        last = dist.get_rank() == dist.get_world_size() - 1
        seen = profiled(lambda: step(batches), args.trace if last else None)
    # The step first: the graph of the last forward may outlive it in the layers' checkpoints.
    forwards = held_at_forwards(step, chunks[0], batches) if args.held else []
    data_size = dist.get_world_size() // (shape.tp * shape.pp)
    return {
        "seconds": statistics.median(seconds),
        "launch_seconds": statistics.median(launches),
        "tokens": data_size * args.micro_batches * SEQ_LENGTH,
        "resident_gib": resident / 2**30,
        "peak_gib": peak / 2**30,
        "held_mib": held_by_forwards(chunks[0], batches) if args.held and shape.pp == 1 else [],
        "forwards_mib": forwards,
        "device": torch.cuda.get_device_name(),
        **seen,
    }


def held_by_forwards(chunk: Any, batches: list[torch.Tensor]) -> list[float]:
    """MiB that one forward holds for its backward, and then one more; the whole model in a chunk.

    The first also brings what is made once. So the second is the truer one.
    """
    positions = torch.arange(SEQ_LENGTH, device="cuda")[None]
    outputs, held = [], []
    gc.collect()
    for tokens in (batches * 2)[:2]:
        before = torch.cuda.memory_allocated()
        outputs.append(chunk(tokens, positions, None, labels=tokens.roll(-1, 1)))
        torch.cuda.synchronize()
        held.append((torch.cuda.memory_allocated() - before) / 2**20)
    return held


class MemoryAtForwards:
    """megatron-core's `timers`, which also note the allocated memory where a forward begins."""

    def __init__(self, timers: Any) -> None:
        self.seen: list[int] = []
        self._timers = timers

    def __call__(self, name: str, log_level: int | None = None) -> MemoryAtForwards:
        self._begins_forward = name == "forward-compute" and log_level is not None
        self._timer = None if self._timers is None else self._timers(name, log_level)
        return self

    def start(self, **given: Any) -> None:
        if self._timer is not None:
            self._timer.start(**given)
        if self._begins_forward:
            self.seen.append(torch.cuda.memory_allocated())

    def stop(self, **given: Any) -> None:
        if self._timer is not None:
            self._timer.stop(**given)


def held_at_forwards(
    step: Callable[[list[torch.Tensor]], object], chunk: Any, batches: list[torch.Tensor]
) -> list[float]:
    """MiB that the first rank holds at the begin of each forward of a step, over the first's."""
    config = chunk.module.config
    kept = config.timers
    config.timers = memory = MemoryAtForwards(kept)
    step(batches)
    config.timers = kept
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, memory.seen)
    return [(one - seen[0][0]) / 2**20 for one in seen[0]]


def heat(chunks: Sequence[Any], count: int) -> None:
    """Make the routers choose the first experts for every token, others by their scores."""
    for chunk in chunks:
        for module in chunk.modules():
            bias = getattr(module, "expert_bias", None)
            if count and bias is not None:
                bias[:count] += 100.0
