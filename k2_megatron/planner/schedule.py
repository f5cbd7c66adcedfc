# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The pipeline schedule as megatron-core runs it: order, micro-batches in flight, time, bubble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

# Micro-batches a rank after which the steady state repeats: no warm-up is longer.
_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Forward or backward of one chunk and micro-batch on one rank."""

    forward: bool
    chunk: int
    micro_batch: int


@dataclass(frozen=True, kw_only=True)
class Bar:
    """An operation with its time, in the unit of the costs."""

    operation: Operation
    begin: float
    end: float


def warmup_forwards(
    rank: int, pipeline: int, virtual: int, num_micro_batches: int, overlap: bool
) -> int:
    """Forwards of a rank in front of the first that has a backward behind it."""
    if pipeline == 1:
        warmup = int(overlap)
    elif virtual == 1:
        warmup = pipeline - rank - 1
    else:
        warmup = 2 * (pipeline - rank - 1) + (virtual - 1) * pipeline + int(overlap)
    return min(warmup, num_micro_batches * virtual)


@cache
def operations(
    rank: int, pipeline: int, virtual: int, num_micro_batches: int, overlap: bool
) -> tuple[Operation, ...]:
    """One rank's operations in order (schedules.py:748 and 798 of megatron-core).

    1F1B; with chunks interleaved in groups of `pipeline` micro-batches; with one more warm-up
    forward where expert communication is overlapped.
    """
    count = num_micro_batches * virtual
    warmup = warmup_forwards(rank, pipeline, virtual, num_micro_batches, overlap)

    def place(index: int, *, forward: bool) -> Operation:
        if virtual == 1:
            return Operation(forward=forward, chunk=0, micro_batch=index)
        group, inside = divmod(index, pipeline * virtual)
        chunk, micro_batch = divmod(inside, pipeline)
        chunk = chunk if forward else virtual - 1 - chunk
        return Operation(forward=forward, chunk=chunk, micro_batch=group * pipeline + micro_batch)

    found = [place(index, forward=True) for index in range(warmup)]
    for index in range(count - warmup):
        found += [place(warmup + index, forward=True), place(index, forward=False)]
    found += [place(index, forward=False) for index in range(count - warmup, count)]
    return tuple(found)


def steady_micro_batches(pipeline: int, num_micro_batches: int) -> int:
    """A number of micro-batches that shows all there is of the schedule."""
    return min(num_micro_batches, _ROUNDS * pipeline)


def most_in_flight(
    order: Sequence[Operation], chunk_bytes: Sequence[float]
) -> tuple[float, tuple[int, ...]]:
    """The most that micro-batches between forward and backward hold at once.

    Args:
        order: of one rank.
        chunk_bytes: what each chunk holds of a micro-batch.

    Returns:
        Bytes, and the micro-batches in flight by chunk at that moment.
    """
    flying = [0] * len(chunk_bytes)
    best, at_best, now = 0.0, tuple(flying), 0.0
    for operation in order:
        sign = 1 if operation.forward else -1
        flying[operation.chunk] += sign
        now += sign * chunk_bytes[operation.chunk]
        if now > best or (operation.forward and now == best and sum(flying) > sum(at_best)):
            best, at_best = now, tuple(flying)
    return best, at_best


def timeline(
    pipeline: int,
    virtual: int,
    num_micro_batches: int,
    overlap: bool,
    forward_costs: Sequence[float],
    backward_costs: Sequence[float],
    hop: float = 0.0,
) -> list[list[Bar]]:
    """When each rank does what, if an operation waits for nothing but its input.

    Args:
        forward_costs, backward_costs: of each of the PP x VPP stages.
        hop: time of what one rank sends to the next.

    Returns:
        The bars of each rank.
    """
    orders = [
        operations(rank, pipeline, virtual, num_micro_batches, overlap) for rank in range(pipeline)
    ]
    last_stage = pipeline * virtual - 1
    done: dict[tuple[bool, int, int], float] = {}
    bars: list[list[Bar]] = [[] for _ in orders]
    next_of, clock = [0] * pipeline, [0.0] * pipeline
    waiting = True
    while waiting:
        waiting = False
        for rank, order in enumerate(orders):
            while next_of[rank] < len(order):
                one = order[next_of[rank]]
                stage = one.chunk * pipeline + rank
                if one.forward:
                    needs = (True, stage - 1, one.micro_batch) if stage else None
                elif stage == last_stage:
                    needs = (True, stage, one.micro_batch)
                else:
                    needs = (False, stage + 1, one.micro_batch)
                if needs is not None and needs not in done:
                    break
                begin = clock[rank]
                if needs is not None:
                    begin = max(begin, done[needs] + (hop if needs[1] != stage else 0.0))
                cost = (forward_costs if one.forward else backward_costs)[stage]
                clock[rank] = begin + cost
                done[one.forward, stage, one.micro_batch] = clock[rank]
                bars[rank].append(Bar(operation=one, begin=begin, end=clock[rank]))
                next_of[rank] += 1
                waiting = True
    assert all(next_of[rank] == len(order) for rank, order in enumerate(orders)), "a deadlock"
    return bars


def pipeline_seconds(
    pipeline: int,
    virtual: int,
    num_micro_batches: int,
    overlap: bool,
    forward_costs: Sequence[float],
    backward_costs: Sequence[float],
    hop: float = 0.0,
) -> tuple[float, float]:
    """Time of all micro-batches, and of the slowest rank's work in it.

    The difference is the bubble. Beyond what shows the schedule, each further micro-batch takes
    the slowest rank's work.
    """
    shown = steady_micro_batches(pipeline, num_micro_batches)
    bars = timeline(pipeline, virtual, shown, overlap, forward_costs, backward_costs, hop)
    slowest = max(
        sum(forward_costs[rank::pipeline]) + sum(backward_costs[rank::pipeline])
        for rank in range(pipeline)
    )
    seconds = max(rank_bars[-1].end for rank_bars in bars)
    more = (num_micro_batches - shown) * slowest
    return seconds + more, num_micro_batches * slowest
