# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The schedule model against the engine's own tables, and what follows from it."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from megatron.core.pipeline_parallel.schedules import get_schedule_table

from k2_megatron.offload.slots import most_on_device
from k2_megatron.planner.offload import travel_plan
from k2_megatron.planner.schedule import (
    operations,
    pipeline_seconds,
    timeline,
    warmup_forwards,
)


@pytest.mark.parametrize(("pipeline", "virtual", "count"), [(2, 2, 4), (4, 3, 12), (8, 2, 16)])
def test_order_is_the_engines(pipeline: int, virtual: int, count: int) -> None:
    table = get_schedule_table(count, virtual, pipeline)
    order = operations(0, pipeline, virtual, count, False)
    forward = [(one.micro_batch, one.chunk) for one in order if one.forward]
    backward = [(one.micro_batch, virtual - 1 - one.chunk) for one in order if not one.forward]
    assert forward == table and backward == table


def test_warm_up_of_the_report() -> None:
    """Figure 7 of the K2 report: 4 ranks, 2 chunks, one more warm-up: 11, 9, 7 and 5 forwards."""
    found = []
    for rank in range(4):
        order = operations(rank, 4, 2, 8, True)
        found.append([one.forward for one in order].index(False) - 1)
    assert found == [11, 9, 7, 5]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("pipeline", "virtual"), [(1, 1), (4, 1), (4, 2), (16, 4)])
def test_every_micro_batch_goes_forth_and_back_once(
    pipeline: int, virtual: int, overlap: bool
) -> None:
    count = 2 * pipeline
    for rank in range(pipeline):
        order = operations(rank, pipeline, virtual, count, overlap)
        for forward in (True, False):
            places = [(o.chunk, o.micro_batch) for o in order if o.forward == forward]
            assert sorted(places) == [(c, m) for c in range(virtual) for m in range(count)]


@pytest.mark.parametrize(
    ("pipeline", "virtual", "overlap"),
    [
        *((1, 1, False), (4, 1, False), (4, 2, False), (16, 4, False)),
        *((1, 1, True), (4, 2, True), (16, 4, True)),
    ],
)
def test_in_flight(pipeline: int, virtual: int, overlap: bool) -> None:
    """The warm-up and, where it does not overlap with a backward, the forward behind it."""
    for rank in range(pipeline):
        warmup = warmup_forwards(rank, pipeline, virtual, 10**6, overlap)
        for count in (4 * pipeline, 16 * pipeline):
            plan = travel_plan(rank, pipeline, virtual, count, overlap)
            fullest = most_on_device(plan, [1.0] * virtual, [0.0] * virtual)
            assert sum(fullest.flying) == fullest.held == warmup + (not overlap)


@pytest.mark.parametrize(("pipeline", "virtual"), [(4, 1), (4, 2), (8, 4)])
def test_bubble_of_even_stages(pipeline: int, virtual: int) -> None:
    """(PP - 1) / VPP times the work of one micro-batch (Narayanan et al., 2021)."""
    ones, twos = [1.0] * (pipeline * virtual), [2.0] * (pipeline * virtual)
    for count in (pipeline, 3 * pipeline):
        total, work = pipeline_seconds(pipeline, virtual, count, False, ones, twos)
        assert work == 3 * virtual * count
        assert total - work == 3 * (pipeline - 1)


@pytest.mark.parametrize(("pipeline", "virtual"), [(1, 1), (4, 1), (2, 2), (4, 2)])
def test_many_micro_batches_take_what_the_whole_schedule_takes(pipeline: int, virtual: int) -> None:
    """Uneven stages: replayed in part and in whole, and never less than the slowest rank's work."""
    chance = random.Random(pipeline * virtual)
    cases = [[chance.uniform(0.2, 3) for _ in range(pipeline * virtual)] for _ in range(40)]
    cases += [[2.62, 1.68, 1.42, 2.53]] * (pipeline * virtual == 4)
    for costs in cases:
        for overlap in {False, virtual > 1}:
            shape = pipeline, virtual, 64 * pipeline, overlap
            backward = [2 * one for one in costs]
            whole = max(ranks[-1].end for ranks in timeline(*shape, costs, backward))
            found, work = pipeline_seconds(*shape, costs, backward)
            assert found >= work
            assert found == pytest.approx(whole, rel=0.005)


def test_a_rank_does_one_thing_at_a_time_after_its_input() -> None:
    costs = [1.0, 3.0, 2.0, 1.0]
    for bars in timeline(2, 2, 6, True, costs, [2 * cost for cost in costs]):
        assert all(one.end <= other.begin for one, other in pairwise(bars))
        assert all(bar.end > bar.begin for bar in bars)


def test_what_travels_takes_its_time_between_ranks_alone() -> None:
    """One micro-batch there and back: two hops; two chunks on one rank send nothing."""
    bars = timeline(2, 1, 1, False, [1.0, 1.0], [2.0, 2.0], 0.25)
    assert max(rank[-1].end for rank in bars) == 1 + 0.25 + 1 + 2 + 0.25 + 2
    assert pipeline_seconds(1, 1, 3, False, [1.0], [2.0], 0.25) == (9.0, 9.0)
