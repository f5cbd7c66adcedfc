# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How much of a step's communication lies under computation, from the kernels of one rank."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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


def is_host_copy(name: str) -> bool:
    """Whether it is a copy to or from the host, which no multiprocessor sees to."""
    return name.startswith(("Memcpy HtoD", "Memcpy DtoH"))


def sides_of(kernels: Iterable[Kernel]) -> tuple[list[Interval], list[Interval]]:
    """When something was computed, and when something was communicated.

    Args:
        kernels: name, begin and end; of several streams. Copies to and from the host count as
            neither.
    """
    sides: tuple[list[Interval], list[Interval]] = ([], [])
    for name, begin, end in kernels:
        if not is_host_copy(name):
            sides[is_communication(name)].append((begin, end))
    return joined(sides[False]), joined(sides[True])


def communication(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Times of communication and computation, in the unit of the kernels.

    Returns:
        `communication`, the part of it during which nothing was computed: `exposed`, and
        `computation`. A kernel that waits for another rank counts as communication, so imbalance is
        in both.
    """
    computing, communicating = sides_of(kernels)
    both = length(joined([*computing, *communicating]))
    return {
        "communication": length(communicating),
        "exposed": both - length(computing),
        "computation": length(computing),
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
    with profile(activities=[ProfilerActivity.CUDA], schedule=rounds) as found:
        for _ in range(warmup + 1):
            step()
            torch.cuda.synchronize()
            found.step()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json.gz" if trace is None else trace
        found.export_chrome_trace(str(path))
        return kernels_of_trace(path)


def events_of_trace(path: Path) -> list[dict[str, Any]]:
    """All events of a trace, `.json.gz`, of one rank."""
    found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return found


def on_device(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of these the kernels, copies and fills."""
    kinds = ("kernel", "gpu_memcpy", "gpu_memset")
    return [event for event in events if event.get("cat") in kinds]


def kernels_of_trace(path: Path) -> list[Kernel]:
    """Name, begin and end of each kernel, copy and fill in a trace, in microseconds from the first.

    Args:
        path: `.json.gz`, of one rank.
    """
    found = on_device(events_of_trace(path))
    first = min((event["ts"] for event in found), default=0.0)
    return [
        (event["name"], event["ts"] - first, event["ts"] + event["dur"] - first) for event in found
    ]


def profiled(step: Callable[[], object], trace: Path | None = None) -> dict[str, float]:
    """Milliseconds of `communication` of a step of this rank; the second of two is looked at."""
    found = communication(kernels_of(step, trace=trace))
    return {f"{name}_ms": us / 1e3 for name, us in found.items()}
