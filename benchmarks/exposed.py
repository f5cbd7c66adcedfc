# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How much of a step's communication lies under computation, from the kernels of one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

Interval = tuple[float, float]
Kernel = tuple[str, float, float]


def is_communication(name: str) -> bool:
    """Whether a kernel is NCCL's."""
    return "nccl" in name.lower()


def joined(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times without overlaps, in order."""
    found: list[Interval] = []
    for begin, end in sorted(intervals):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((begin, end))
    return found


def length(intervals: Sequence[Interval]) -> float:
    """Their sum."""
    return sum(end - begin for begin, end in intervals)


def communication(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Times of communication, in the unit of the kernels.

    Args:
        kernels: name, begin and end; of several streams.

    Returns:
        `communication`, and the part of it during which nothing else ran: `exposed`. A kernel
        that waits for another rank counts as communication, so imbalance is in both.
    """
    sides: tuple[list[Interval], list[Interval]] = ([], [])
    for name, begin, end in kernels:
        sides[is_communication(name)].append((begin, end))
    computing, communicating = (joined(side) for side in sides)
    both = length(joined([*computing, *communicating]))
    return {
        "communication": length(communicating),
        "exposed": both - length(computing),
    }


def kernels_of(
    step: Callable[[], object], *, warmup: int = 1, trace: Path | None = None
) -> list[Kernel]:
    """Name, begin and end in microseconds of each kernel of a step of this rank.

    The host's side is not traced: doing so makes the host the slower one.

    Args:
        warmup: steps that are profiled before it and not looked at.
        trace: where a trace for chrome://tracing or ui.perfetto.dev is written.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile, schedule

    rounds = schedule(wait=0, warmup=warmup, active=1, repeat=1)
    with profile(activities=[ProfilerActivity.CUDA], schedule=rounds, acc_events=True) as found:
        for _ in range(warmup + 1):
            step()
            torch.cuda.synchronize()
            found.step()
    if trace is not None:
        found.export_chrome_trace(str(trace))
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in found.events()
        if str(event.device_type).endswith("CUDA") and "#" not in event.name
    ]


def profiled(step: Callable[[], object], trace: Path | None = None) -> dict[str, float]:
    """Milliseconds of `communication` of a step of this rank; the second of two is looked at."""
    found = communication(kernels_of(step, trace=trace))
    return {f"{name}_ms": us / 1e3 for name, us in found.items()}
