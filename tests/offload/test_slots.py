# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Who travels when, over random pipelines and in schedules written out by hand."""

from __future__ import annotations

import random

import pytest

from k2_megatron.offload.sizes import PoolSize, pool_sizes, total_bytes, within
from k2_megatron.offload.slots import (
    Fullest,
    Journey,
    Slot,
    itinerary,
    most_blocks,
    most_blocks_at_once,
    most_on_device,
    slots_of,
)
from tests.offload.pipelines import itinerary_of, random_itinerary


def test_slots_of_1f1b() -> None:
    order = [(True, (0, 0)), (True, (0, 1)), (False, (0, 0)), (False, (0, 1))]
    assert slots_of(order, 0) == tuple(
        Slot(forward=pack) if forward else Slot(backward=pack) for forward, pack in order
    )


def test_overlapped_forward_and_backward_are_one_slot() -> None:
    """Only the last forwards are paired: one alone in front of a backward may be warm-up."""
    packs = [(0, 0), (0, 1)]
    order = [(True, packs[0]), (True, packs[1]), (False, packs[0]), (False, packs[1])]
    assert slots_of(order, 1) == (
        Slot(forward=packs[0]),
        Slot(forward=packs[1], backward=packs[0]),
        Slot(backward=packs[1]),
    )


def test_journey_takes_a_slot_either_way() -> None:
    packs = [(0, index) for index in range(4)]
    order = [*((True, pack) for pack in packs), *((False, pack) for pack in packs)]
    plan = itinerary(slots_of(order, 0))
    assert plan.journeys == {
        packs[index]: Journey(made=index, away=index + 2, back=index + 3, read=index + 4)
        for index in range(4)
    }
    assert most_blocks(plan) == {0: 4}


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_packs_that_are_read_soon_stay(distance: int) -> None:
    """Behind the next slot they would be back before they are away."""
    packs = [(0, index) for index in range(distance)]
    order = [*((True, pack) for pack in packs), *((False, pack) for pack in packs)]
    assert not itinerary(slots_of(order, 0)).journeys


def test_packs_that_stay_may_travel_by_layer() -> None:
    """Where the chunk has three layers or more, and nothing is overlapped."""
    order = [(forward, (0, index)) for index in range(4) for forward in (True, False)]
    assert itinerary(slots_of(order, 0), [3]).by_layer == {(0, index): 3 for index in range(4)}
    assert not itinerary(slots_of(order, 0), [2]).by_layer
    assert not itinerary_of(0, 1, 1, 4, overlap=True, num_layers=(5,)).by_layer
    plan = itinerary_of(0, 1, 1, 4, overlap=False, num_layers=(5,))
    # Two of five layers are there; a block is free when the backward has ended.
    assert most_on_device(plan, [1.0], [100.0]) == Fullest(held=41, flying=(1,), present=(0.4,))
    assert most_blocks(plan) == {0: 1}
    mixed = itinerary_of(1, 2, 2, 8, overlap=False, num_layers=(4, 4))
    assert {chunk for chunk, _ in mixed.journeys} == {0}
    assert {chunk for chunk, _ in mixed.by_layer} == {1}


def test_what_is_on_the_device() -> None:
    """Eight in a row: two are there in forward, two in backward, all leave 1 byte behind."""
    packs = [(0, index) for index in range(8)]
    order = [*((True, pack) for pack in packs), *((False, pack) for pack in packs)]
    plan = itinerary(slots_of(order, 0))
    # In slot 7: packs 6 and 7 leave, pack 0 comes.
    assert most_on_device(plan, [1.0], [100.0]) == Fullest(held=308, flying=(8,), present=(3,))


@pytest.mark.parametrize("seed", range(200))
def test_random_pipelines(seed: int) -> None:
    """Counted slot by slot: the maxima of blocks and of the device are reached and not passed.

    A pack that is read while another is made goes as that one comes.
    """
    shuffled = random.Random(seed)
    plan = random_itinerary(shuffled)
    staying, leaving = ([shuffled.randrange(9) for _ in range(4)] for _ in range(2))
    blocks: dict[int, int] = {}
    fullest = together = 0
    for index in range(len(plan.slots)):
        held = 0
        for pack, (first, last) in plan.stays.items():
            if first <= index < last + (plan.slots[last].forward is None):
                journey = plan.journeys.get(pack)
                away = journey is not None and journey.away <= index < journey.back
                held += staying[pack[0]] + (0 if away else leaving[pack[0]])
        fullest = max(fullest, held)
        away = [p[0] for p, one in plan.journeys.items() if one.made <= index < one.read]
        together = max(together, len(away))
        for chunk in away:
            blocks[chunk] = max(blocks.get(chunk, 0), away.count(chunk))
    assert most_blocks(plan) == blocks and most_blocks_at_once(plan) == together
    assert most_on_device(plan, staying, leaving).held == fullest
    for journey in plan.journeys.values():
        assert journey.made + 2 == journey.away < journey.back == journey.read - 1


def test_pool_is_common_where_chunks_are_alike_and_apart_where_they_are_not() -> None:
    plan = itinerary_of(0, 4, 4, 16, overlap=True)
    assert most_blocks(plan) == {0: 8, 1: 8, 2: 4, 3: 4} and most_blocks_at_once(plan) == 19
    assert pool_sizes(plan, [1000, 1000, 1024, 1000]) == (
        PoolSize(num_blocks=19, block_bytes=1024, chunks=(0, 1, 2, 3)),
    )
    apart = pool_sizes(plan, [1, 1, 10_000, 1])
    assert [(one.num_blocks, one.block_bytes) for one in apart] == [
        (8, 512),
        (8, 512),
        (4, 10_240),
        (4, 512),
    ]
    assert total_bytes(within(apart, 0.5)) == 4 * 5120
    assert pool_sizes(itinerary_of(0, 1, 1, 8, overlap=False), [1000]) == ()


@pytest.mark.parametrize("seed", range(30))
def test_four_rounds_of_micro_batches_show_all_that_the_pool_must_hold(seed: int) -> None:
    """The planner does not walk through thousands of micro-batches."""
    shuffled = random.Random(seed)
    pipeline, virtual = shuffled.choice([2, 3, 4, 8, 16]), shuffled.choice([1, 2, 4])
    rank, overlap = shuffled.randrange(pipeline), virtual > 1 and shuffled.random() < 0.5
    few, many = (
        itinerary_of(rank, pipeline, virtual, rounds * pipeline, overlap=overlap)
        for rounds in (4, 12)
    )
    assert most_blocks(few) == most_blocks(many)
    assert most_blocks_at_once(few) == most_blocks_at_once(many)
