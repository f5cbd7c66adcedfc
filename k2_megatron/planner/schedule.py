# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The pipeline schedule as megatron-core runs it: order, micro-batches in flight, time, bubble."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

# Micro-batches, and rounds of PP of them, after which a schedule is steady but for rare ones.
_STEADY, _STEADY_ROUNDS = 16, 4


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
    rank: int, pipeline: int, virtual: int, num_microbatches: int, overlap: bool
) -> int:
    """Forwards of a rank in front of the first that has a backward behind it."""
    if pipeline == 1:
        warmup = int(overlap)
    elif virtual == 1:
        warmup = pipeline - rank - 1
    else:
        warmup = 2 * (pipeline - rank - 1) + (virtual - 1) * pipeline + int(overlap)
    return min(warmup, num_microbatches * virtual)


@cache
def operations(
    rank: int, pipeline: int, virtual: int, num_microbatches: int, overlap: bool
) -> tuple[Operation, ...]:
    """One rank's operations in order (schedules.py:748 and 798 of megatron-core).

    1F1B; with chunks interleaved in groups of `pipeline` micro-batches; with one more warm-up
    forward where expert communication is overlapped.
    """
    count = num_microbatches * virtual
    warmup = warmup_forwards(rank, pipeline, virtual, num_microbatches, overlap)

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


def timeline(
    pipeline: int,
    virtual: int,
    num_microbatches: int,
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
    found: list[list[Bar]] = [[] for _ in range(pipeline)]
    orders = _orders(pipeline, virtual, num_microbatches, overlap)
    for rank, operation, begin, end in _replay(orders, forward_costs, backward_costs, hop):
        found[rank].append(Bar(operation=operation, begin=begin, end=end))
    return found


def _orders(
    pipeline: int, virtual: int, num_microbatches: int, overlap: bool
) -> list[tuple[Operation, ...]]:
    """The operations of every rank."""
    shape = pipeline, virtual, num_microbatches, overlap
    return [operations(rank, *shape) for rank in range(pipeline)]


def _replay(
    orders: Sequence[Sequence[Operation]],
    forward_costs: Sequence[float],
    backward_costs: Sequence[float],
    hop: float,
) -> Iterator[tuple[int, Operation, float, float]]:
    """(rank, operation, begin, end), each rank's in its order and behind what it needs."""
    pipeline, stages = len(orders), len(forward_costs)
    num_microbatches = len(orders[0]) * pipeline // (2 * stages)
    # When the output of each stage and micro-batch was there, [stages, micro-batches].
    forward_done: list[list[float | None]] = [[None] * num_microbatches for _ in range(stages)]
    backward_done: list[list[float | None]] = [[None] * num_microbatches for _ in range(stages)]
    next_of, clock = [0] * pipeline, [0.0] * pipeline
    waiting = True
    while waiting:
        waiting = False
        for rank, order in enumerate(orders):
            while next_of[rank] < len(order):
                one = order[next_of[rank]]
                stage, index = one.chunk * pipeline + rank, one.micro_batch
                begin = clock[rank]
                if one.forward:
                    needs = forward_done[stage - 1][index] if stage else begin - hop
                elif stage == stages - 1:
                    needs = forward_done[stage][index]
                    needs = None if needs is None else needs - hop  # nothing travels
                else:
                    needs = backward_done[stage + 1][index]
                if needs is None:
                    break
                begin = max(begin, needs + hop)
                end = begin + (forward_costs if one.forward else backward_costs)[stage]
                (forward_done if one.forward else backward_done)[stage][index] = clock[rank] = end
                yield rank, one, begin, end
                next_of[rank] += 1
                waiting = True
    assert all(next_of[rank] == len(order) for rank, order in enumerate(orders)), "a deadlock"


def pipeline_seconds(
    pipeline: int,
    virtual: int,
    num_microbatches: int,
    overlap: bool,
    forward_costs: Sequence[float],
    backward_costs: Sequence[float],
    hop: float = 0.0,
) -> tuple[float, float]:
    """Time of all micro-batches, and of the slowest rank's work in it.

    The difference is the bubble. Where there are many, the schedule is replayed until it is steady,
    and each further round of PP micro-batches takes what the last ones added: more than the slowest
    rank's work where chunks are uneven, because ranks wait for each other in every round.
    """

    def replayed(count: int) -> float:
        orders = _orders(pipeline, virtual, count, overlap)
        return max(end for *_, end in _replay(orders, forward_costs, backward_costs, hop))

    slowest = max(
        sum(forward_costs[rank::pipeline]) + sum(backward_costs[rank::pipeline])
        for rank in range(pipeline)
    )
    steady = pipeline * max(_STEADY_ROUNDS, -(-_STEADY // pipeline))
    work = num_microbatches * slowest
    if num_microbatches <= steady + 2 * pipeline:
        return replayed(num_microbatches), work
    seconds, more = replayed(steady), replayed(steady + 2 * pipeline)
    # Where rounds still get slower, they do so until the slowest rank never waits.
    round_seconds = max((more - seconds) / 2, pipeline * slowest)
    seconds += (num_microbatches - steady) / pipeline * round_seconds
    return max(seconds, work), work
