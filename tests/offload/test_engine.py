# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Packs that travel come back whole: over random pipelines, with late copies and poison."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from k2_megatron.offload.engine import OffloadEngine, Traffic
from k2_megatron.offload.pool import Block, HostPool
from k2_megatron.offload.sizes import ALIGNMENT, PoolSize, pool_sizes, total_bytes
from k2_megatron.offload.streams import PlainStreams, Streams
from tests.live_storages import LiveStorages
from tests.offload.delayed_streams import DelayedStreams
from tests.offload.pipelines import Square, in_a_row, itinerary_of, random_itinerary, run, sizes


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_random_pipelines_come_back_whole(seed: int, delayed: bool) -> None:
    """Sizes differ from pack to pack, some have no rows; the pool serves several schedules."""
    shuffled = random.Random(seed)
    plan = random_itinerary(shuffled)
    streams: Streams = DelayedStreams(seed) if delayed else PlainStreams()
    engine = OffloadEngine(streams)
    engine.provide(sizes(plan))
    generator = torch.Generator().manual_seed(seed)

    def make() -> list[torch.Tensor]:
        rows = [shuffled.randrange(0, 4) for _ in range(4)]
        return [torch.randn(n, 64, generator=generator).bfloat16() for n in rows]

    for _ in range(2):
        run(engine, plan, make)
        traffic = engine.traffic
        assert traffic.sent == traffic.fetched and traffic.stayed == 0
        assert engine.high_water_bytes <= engine.pool_bytes
        if isinstance(streams, DelayedStreams) and plan.journeys:
            assert streams.poisoned >= traffic.sent > 0
    assert engine.pool_bytes == total_bytes(sizes(plan))


def test_device_holds_what_is_computed_and_what_is_under_way() -> None:
    """Forward of six: two packs are there; on the way back the next one beside the one read."""
    engine = OffloadEngine(PlainStreams())
    plan = in_a_row(6)
    engine.provide(sizes(plan))
    here = []

    def look(index: int, alive: dict[tuple[int, int], list[torch.Tensor]]) -> None:
        there = [pack for pack, (x,) in alive.items() if x.untyped_storage().nbytes()]
        here.append([index for _, index in there])

    run(engine, plan, lambda: [torch.randn(16)], look)
    forward = [[0], [0, 1], [1, 2], [2, 3], [3, 4], [0, 4, 5]]
    # What is read in a slot is gone when `look` comes.
    backward = [[1, 5], [2], [3], [4], [5], []]
    assert here == forward + backward


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("delayed", [False, True])
def test_layers_travel_one_by_one_where_backward_follows_at_once(
    num_layers: int, delayed: bool
) -> None:
    """After forward the last two are there; gradients are those of a program without offload."""
    engine = OffloadEngine(DelayedStreams(num_layers) if delayed else PlainStreams())
    plan = itinerary_of(0, 1, 1, 3, overlap=False, num_layers=(num_layers,))
    engine.provide(sizes(plan))
    with engine.running(plan):
        for seed in range(3):
            start = torch.rand(16, generator=torch.Generator().manual_seed(seed)) + 0.5
            begins = [start.clone().requires_grad_() for _ in range(2)]
            plain, seen = begins[0] * 1.0, begins[1] * 1.0
            engine.begin(forward=True, backward=False)
            inputs = []
            for _ in range(num_layers):
                engine.begin_layer(seen)
                engine.take(seen)
                inputs.append(seen.detach())
                plain, seen = Square.apply(plain), Square.apply(seen)
            if not delayed:
                there = [x.untyped_storage().nbytes() > 0 for x in inputs]
                assert there == [i >= num_layers - 2 for i in range(num_layers)]
            engine.begin(forward=False, backward=True)
            plain.sum().backward()
            seen.sum().backward()
            assert torch.equal(begins[0].grad, begins[1].grad)
    sent = 3 * 64 * max(0, num_layers - 2)
    assert engine.traffic == Traffic(sent=sent, fetched=sent)


def test_layers_that_are_read_go_while_the_others_come_back() -> None:
    """In backward as in forward, a device holds a few layers and not all of them."""
    most = []

    class Watched(Square):
        @staticmethod
        def backward(ctx, gradient):
            most.append(sum(size == 4000 for _, size in live.alive()))
            return Square.backward(ctx, gradient)

    engine = OffloadEngine(PlainStreams())
    plan = itinerary_of(0, 1, 1, 1, overlap=False, num_layers=(20,))
    engine.provide(pool_sizes(plan, [20 * 4096]))
    with engine.running(plan), LiveStorages() as live:
        seen = torch.ones(1000, requires_grad=True) * 1.0
        engine.begin(forward=True, backward=False)
        for _ in range(20):
            engine.begin_layer(seen)
            engine.take(seen)
            seen = Watched.apply(seen)
        engine.begin(forward=False, backward=True)
        seen.sum().backward()
    assert engine.traffic.fetched == 18 * 4000
    # The leaf, two or three layers' inputs, the last output, and gradients under way.
    assert len(most) == 20 and max(most) <= 8, most


def test_views_of_a_storage_travel_once_and_come_back_in_place() -> None:
    engine = OffloadEngine(PlainStreams())
    plan = in_a_row(4)
    engine.provide(sizes(plan))

    def make() -> list[torch.Tensor]:
        whole = torch.randn(8, 4)
        return [whole[:, :2], whole, whole.t(), whole.detach()]

    run(engine, plan, make)
    assert engine.traffic == Traffic(sent=4 * 128, fetched=4 * 128)


def test_what_finds_no_room_stays_and_is_counted() -> None:
    """A later, smaller tensor still goes."""
    engine = OffloadEngine(PlainStreams())
    plan = in_a_row(4)
    engine.provide(sizes(plan, block_bytes=2 * ALIGNMENT))
    run(engine, plan, lambda: [torch.randn(n) for n in (128, 256, 128)])
    assert engine.traffic == Traffic(sent=4 * 1024, fetched=4 * 1024, stayed=4 * 1024)
    assert engine.high_water_bytes == engine.pool_bytes == 4 * 1024


def test_nothing_travels_outside_of_a_schedule() -> None:
    """As in an evaluation, whose forwards announce their slots too."""
    engine = OffloadEngine(PlainStreams())
    plan = in_a_row(4)
    engine.provide(sizes(plan))
    x = torch.randn(4)
    engine.begin(forward=True, backward=False)
    engine.take(x)
    run(engine, plan, lambda: [torch.randn(4)])
    engine.begin(forward=True, backward=False)
    engine.take(x)
    assert x.untyped_storage().nbytes() == 16 and engine.traffic.sent == 64


def test_schedule_that_fails_leaves_a_pool_that_serves_the_next() -> None:
    engine = OffloadEngine(PlainStreams())
    plan = in_a_row(4)
    engine.provide(sizes(plan))

    def fail(index: int, _: object) -> None:
        if index == 3:
            raise ValueError("out of luck")

    with pytest.raises(ValueError, match="out of luck"):
        run(engine, plan, lambda: [torch.randn(4)], fail)
    run(engine, plan, lambda: [torch.randn(4)])
    assert engine.traffic.sent == 64


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([(False, True)], "slot 0 is"),
        ([(True, True)], "slot 0 is"),
        ([(True, False)], "the schedule ended early"),
    ],
)
def test_another_schedule_than_the_planned_is_noticed(slots: list, message: str) -> None:
    engine = OffloadEngine(PlainStreams())
    plan = in_a_row(4)
    engine.provide(sizes(plan))
    with pytest.raises(AssertionError, match=message), engine.running(plan):
        for forward, backward in slots:
            engine.begin(forward=forward, backward=backward)


def test_more_packs_than_planned_and_parameters_are_noticed() -> None:
    engine = OffloadEngine(PlainStreams())
    engine.provide(sizes(in_a_row(4)))
    with pytest.raises(AssertionError, match="more packs of chunk 0 travel than were planned"):
        run(engine, in_a_row(5), lambda: [torch.randn(4)])
    with pytest.raises(AssertionError, match="parameters stay"):
        run(engine, in_a_row(4), lambda: [torch.nn.Parameter(torch.randn(4))])


@pytest.mark.parametrize("when", [0, 1], ids=["before it is sent", "before it leaves"])
def test_what_somebody_else_emptied_is_noticed(when: int) -> None:
    engine = OffloadEngine(PlainStreams())
    plan = in_a_row(4)
    engine.provide(sizes(plan))

    def empty(index: int, alive: dict[tuple[int, int], list[torch.Tensor]]) -> None:
        if index == when:
            alive[0, 0][0].untyped_storage().resize_(0)

    with pytest.raises(AssertionError, match="somebody else emptied"):
        run(engine, plan, lambda: [torch.randn(4)], empty)


def test_blocks_do_not_overlap() -> None:
    pool = HostPool(
        [
            PoolSize(num_blocks=2, block_bytes=1024, chunks=(0, 2)),
            PoolSize(num_blocks=1, block_bytes=512, chunks=(1,)),
        ],
        PlainStreams(),
    )
    blocks: list[Block] = [pool.take(0), pool.take(2), pool.take(1)]
    places = [block.room(512) for block in blocks]
    assert pool.total_bytes == 2560
    addresses = sorted(place.data_ptr() for place in places if place is not None)
    assert len(addresses) == 3
    assert all(b - a >= 512 for a, b in pairwise(addresses))
    assert blocks[2].room(1) is None and blocks[0].room(513) is None
    pool.give(blocks[1], None)
    assert pool.take(0) is blocks[1]
