# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""When a GPU computed nothing in a traced step, and how late the counts of MoE layers were.

    python3 benchmarks/gaps.py TRACE.json.gz...

Traces are those of `offload.py --trace` and `layouts.py --trace`, of one rank and one step. A gap
is a time without kernels, fills and copies within the device; NCCL's kernels and copies to and from
the host do not count. Profiling makes the host slower, so that gaps in which the GPU waits for it
are shorter in a run. Counts are what the host waits for: copies to it of less than 10 kB, or the
kernels that write in their place; they are ready when all that was queued in front of them is done.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from exposed import events_of_trace, is_communication, is_host_copy, on_device

EDGES_US = (3, 10, 50, 200, 1000, float("inf"))
SMALL_BYTES = 10_000
Event = dict[str, Any]


def main() -> None:
    """Print each trace's gaps and counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--pairs", type=int, default=8, help="kernels around gaps, worst first")
    args = parser.parse_args()
    for path in args.traces:
        show(path.name, events_of_trace(path), args.pairs)


def show(name: str, events: list[Event], most_pairs: int) -> None:
    """One trace."""
    found = sorted(on_device(events), key=lambda one: one["ts"])
    computing = [
        one for one in found if not (is_communication(one["name"]) or is_host_copy(one["name"]))
    ]
    gaps = list(gaps_between(computing))
    span = max(map(end_of, found)) - found[0]["ts"]
    print(f"{name}: {span / 1e3:.1f} ms, of it {sum(us for us, _ in gaps) / 1e3:.1f} in gaps")
    for low, high in zip((0, *EDGES_US), EDGES_US, strict=False):
        some = [us for us, _ in gaps if low <= us < high]
        print(f"  {low:5.0f} to {high:5.0f} us: {len(some):6d} gaps, {sum(some) / 1e3:8.1f} ms")
    pairs: Counter[tuple[str, str]] = Counter()
    for us, pair in gaps:
        pairs[pair] += us
    for (before, behind), us in pairs.most_common(most_pairs):
        print(f"  {us / 1e3:8.2f} ms  {before[:44]:44s} -> {behind[:44]}")
    delays = delays_of_counts(events, found, computing)
    if delays:
        print(
            f"  counts: {len(delays)}, there after {statistics.mean(delays):.0f} us in the mean, "
            f"{max(delays):.0f} at most"
        )
    waits = [one["dur"] for one in events if one.get("name") == "cudaEventSynchronize"]
    print(f"  the host waited for events for {sum(waits) / 1e3:.1f} ms")


def end_of(event: Event) -> float:
    """When it was done, in microseconds."""
    return float(event["ts"] + event["dur"])


def gaps_between(computing: Iterable[Event]) -> Iterable[tuple[float, tuple[str, str]]]:
    """Length and names around each; the events are in order of their begin."""
    last, before = float("inf"), ""
    for one in computing:
        if one["ts"] > last:
            yield one["ts"] - last, (before, one["name"])
        if before == "" or end_of(one) > last:
            last, before = end_of(one), one["name"]


def delays_of_counts(
    events: list[Event], found: list[Event], computing: list[Event]
) -> list[float]:
    """Microseconds from when they could be sent until they were there."""
    queued = {
        one["args"]["correlation"]: one["ts"]
        for one in events
        if one.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in one["args"]
    }
    streams = Counter(one["args"]["stream"] for one in computing)
    main_stream = streams.most_common(1)[0][0]
    in_front = [one for one in computing if one["args"]["stream"] == main_stream]
    counts = [
        one
        for one in found
        if one["name"].startswith("Memcpy DtoH") and one["args"]["bytes"] < SMALL_BYTES
    ] or [
        one
        for one in computing
        if one["args"]["stream"] != main_stream and "CUDAFunctorOnSelf_add<long>" in one["name"]
    ]
    delays = []
    for one in counts:
        begun = queued[one["args"]["correlation"]]
        done = [end_of(other) for other in in_front if queued_before(other, queued, begun)]
        delays.append(end_of(one) - max([begun, *done]))
    return delays


def queued_before(event: Event, queued: dict[int, float], moment: float) -> bool:
    """Whether the host had queued it by then."""
    return queued.get(event["args"]["correlation"], float("inf")) < moment


if __name__ == "__main__":
    main()
