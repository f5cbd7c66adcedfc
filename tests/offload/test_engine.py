# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Packs that travel come back whole: over random pipelines, with late copies and poison."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from k2_megatron.offload.engine import OffloadEngine, Traffic
from k2_megatron.offload.pool import Block, HostPool
from k2_megatron.offload.sizes import ALIGNMENT, PoolSize, pool_sizes, total_bytes
from k2_megatron.offload.slots import Itinerary, itinerary, slots_of
from k2_megatron.offload.streams import PlainStreams, Streams
from torch.multiprocessing.reductions import StorageWeakRef

from tests.live_storages import LiveStorages
from tests.offload.delayed_streams import DelayedStreams
from tests.offload.pipelines import itinerary_of, random_itinerary

PACK_BYTES = 8 * ALIGNMENT


def _sizes(plan: Itinerary, block_bytes: int = PACK_BYTES) -> tuple[PoolSize, ...]:
    return pool_sizes(plan, [block_bytes] * 4)


def _in_a_row(count: int) -> Itinerary:
    packs = [(0, index) for index in range(count)]
    return itinerary(
        slots_of([*((True, p) for p in packs), *((False, p) for p in packs)], num_pairs=0)
    )


def _run(
    engine: OffloadEngine,
    plan: Itinerary,
    make: Callable[[], list[torch.Tensor]],
    look: Callable[[int, dict[tuple[int, int], list[torch.Tensor]]], None] = lambda *_: None,
) -> None:
    """Go through a schedule; every backward checks what its forward made."""
    alive: dict[tuple[int, int], list[torch.Tensor]] = {}
    expected: dict[tuple[int, int], list[torch.Tensor]] = {}
    with engine.running(plan):
        for index, slot in enumerate(plan.slots):
            engine.begin(forward=slot.forward is not None, backward=slot.backward is not None)
            if slot.forward is not None:
                tensors = make()
                expected[slot.forward] = [tensor.clone() for tensor in tensors]
                alive[slot.forward] = tensors
                for tensor in tensors:
                    engine.take(tensor)
                # Forward reads them to its end.
                assert all(map(torch.equal, tensors, expected[slot.forward]))
            if slot.backward is not None:
                read = expected.pop(slot.backward)
                assert all(map(torch.equal, alive.pop(slot.backward), read))
            look(index, alive)
    assert not alive


@pytest.mark.parametrize("delayed", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_random_pipelines_come_back_whole(seed: int, delayed: bool) -> None:
    """Sizes differ from pack to pack, some have no rows; the pool serves several schedules."""
    shuffled = random.Random(seed)
    plan = random_itinerary(shuffled)
    streams: Streams = DelayedStreams(seed) if delayed else PlainStreams()
    engine = OffloadEngine(streams)
    engine.provide(_sizes(plan))
    generator = torch.Generator().manual_seed(seed)

    def make() -> list[torch.Tensor]:
        rows = [shuffled.randrange(0, 4) for _ in range(4)]
        return [torch.randn(n, 64, generator=generator).bfloat16() for n in rows]

    for _ in range(2):
        _run(engine, plan, make)
        traffic = engine.traffic
        assert traffic.sent == traffic.fetched and traffic.stayed == 0
        assert engine.high_water_bytes <= engine.pool_bytes
        if isinstance(streams, DelayedStreams) and plan.journeys:
            assert streams.poisoned >= traffic.sent > 0
    assert engine.pool_bytes == total_bytes(_sizes(plan))


def test_device_holds_what_is_computed_and_what_is_under_way() -> None:
    """Forward of six: two packs are there; on the way back the next one beside the one read."""
    engine = OffloadEngine(PlainStreams())
    plan = _in_a_row(6)
    engine.provide(_sizes(plan))
    here = []

    def look(index: int, alive: dict[tuple[int, int], list[torch.Tensor]]) -> None:
        there = [pack for pack, (x,) in alive.items() if x.untyped_storage().nbytes()]
        here.append([index for _, index in there])

    _run(engine, plan, lambda: [torch.randn(16)], look)
    forward = [[0], [0, 1], [1, 2], [2, 3], [3, 4], [0, 4, 5]]
    # What is read in a slot is gone when `look` comes.
    backward = [[1, 5], [2], [3], [4], [5], []]
    assert here == forward + backward


class Square(torch.autograd.Function):
    """Saves its input, as a layer does."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("delayed", [False, True])
def test_layers_travel_one_by_one_where_backward_follows_at_once(
    num_layers: int, delayed: bool
) -> None:
    """After forward the last two are there; gradients are those of a program without offload."""
    engine = OffloadEngine(DelayedStreams(num_layers) if delayed else PlainStreams())
    plan = itinerary_of(0, 1, 1, 3, overlap=False, num_layers=(num_layers,))
    engine.provide(_sizes(plan))
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


def test_pack_comes_back_part_by_part() -> None:
    """Backward waits for what it reads next, and for no more; late parts are NaN until then."""
    done = []

    class Watched(DelayedStreams):
        def wait(self, mark, queue):
            super().wait(mark, queue)
            if queue == "in":
                done.append(mark)

        def _do_some(self):
            """Nothing is early: what has come has been waited for."""

    engine = OffloadEngine(Watched())
    plan, count = _in_a_row(4), 5
    engine.provide(_sizes(plan))
    packs = []
    with engine.running(plan):
        for index in range(4):
            engine.begin(forward=True, backward=False)
            start = torch.rand(16, generator=torch.Generator().manual_seed(index)) + 0.5
            begins = [start.clone().requires_grad_() for _ in range(2)]
            plain, seen, inputs = begins[0] * 1.0, begins[1] * 1.0, []
            for _ in range(count):
                engine.begin_layer(seen)
                engine.take(seen)
                inputs.append(seen.detach())
                plain, seen = Square.apply(plain), Square.apply(seen)
            packs.append((begins, plain, seen, inputs))
        for begins, plain, seen, inputs in packs:
            done.clear()
            engine.begin(forward=False, backward=True)
            assert [bool(x.isnan().any()) for x in inputs] == [True] * (count - 1) + [False]
            plain.sum().backward()
            seen.sum().backward()
            assert torch.equal(begins[0].grad, begins[1].grad)
            assert len(done) == len(set(done)) == count


def test_pack_comes_back_as_a_whole_where_a_forward_runs_beside() -> None:
    engine = OffloadEngine(DelayedStreams())
    plan = itinerary_of(0, 2, 2, 8, overlap=True)
    paired = [slot for slot in plan.slots if slot.forward and slot.backward in plan.journeys]
    engine.provide(_sizes(plan))
    alive = {}
    with engine.running(plan):
        for slot in plan.slots:
            engine.begin(forward=slot.forward is not None, backward=slot.backward is not None)
            if slot.backward in plan.journeys:
                back = [not bool(x.isnan().any()) for x in alive.pop(slot.backward)]
                assert back[-1] and (all(back) or slot not in paired)
            if slot.forward is not None:
                alive[slot.forward] = [torch.ones(16, requires_grad=True) * 1.0 for _ in range(4)]
                for x in alive[slot.forward]:
                    engine.begin_part(x)
                    engine.take(x)
    assert paired


def test_storage_that_nobody_saved_is_held_until_its_copy_is_waited_for() -> None:
    """The copy back is queued and writes to it, whoever else has let go."""
    engine = OffloadEngine(PlainStreams())
    plan = _in_a_row(4)
    engine.provide(_sizes(plan))
    gates, watched = [], []
    with engine.running(plan):
        for _ in range(4):
            engine.begin(forward=True, backward=False)
            first, second = (torch.ones(16, requires_grad=True) * 1.0 for _ in range(2))
            engine.begin_part(first)
            engine.take(first)
            engine.begin_part(second)
            engine.take(second.detach())
            watched.append(StorageWeakRef(first.untyped_storage()))
            gates.append(second * 1.0)
            del first, second
        for gate, watch in zip(gates, watched, strict=True):
            engine.begin(forward=False, backward=True)
            assert not watch.expired()
            gate.sum().backward()
            assert watch.expired()


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
    plan = _in_a_row(4)
    engine.provide(_sizes(plan))

    def make() -> list[torch.Tensor]:
        whole = torch.randn(8, 4)
        return [whole[:, :2], whole, whole.t(), whole.detach()]

    _run(engine, plan, make)
    assert engine.traffic == Traffic(sent=4 * 128, fetched=4 * 128)


def test_what_finds_no_room_stays_and_is_counted() -> None:
    """A later, smaller tensor still goes."""
    engine = OffloadEngine(PlainStreams())
    plan = _in_a_row(4)
    engine.provide(_sizes(plan, block_bytes=2 * ALIGNMENT))
    _run(engine, plan, lambda: [torch.randn(n) for n in (128, 256, 128)])
    assert engine.traffic == Traffic(sent=4 * 1024, fetched=4 * 1024, stayed=4 * 1024)
    assert engine.high_water_bytes == engine.pool_bytes == 4 * 1024


def test_nothing_travels_outside_of_a_schedule() -> None:
    """As in an evaluation, whose forwards announce their slots too."""
    engine = OffloadEngine(PlainStreams())
    plan = _in_a_row(4)
    engine.provide(_sizes(plan))
    x = torch.randn(4)
    engine.begin(forward=True, backward=False)
    engine.take(x)
    _run(engine, plan, lambda: [torch.randn(4)])
    engine.begin(forward=True, backward=False)
    engine.take(x)
    assert x.untyped_storage().nbytes() == 16 and engine.traffic.sent == 64


def test_schedule_that_fails_leaves_a_pool_that_serves_the_next() -> None:
    engine = OffloadEngine(PlainStreams())
    plan = _in_a_row(4)
    engine.provide(_sizes(plan))

    def fail(index: int, _: object) -> None:
        if index == 3:
            raise ValueError("out of luck")

    with pytest.raises(ValueError, match="out of luck"):
        _run(engine, plan, lambda: [torch.randn(4)], fail)
    _run(engine, plan, lambda: [torch.randn(4)])
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
    plan = _in_a_row(4)
    engine.provide(_sizes(plan))
    with pytest.raises(AssertionError, match=message), engine.running(plan):
        for forward, backward in slots:
            engine.begin(forward=forward, backward=backward)


def test_more_packs_than_planned_and_parameters_are_noticed() -> None:
    engine = OffloadEngine(PlainStreams())
    engine.provide(_sizes(_in_a_row(4)))
    with pytest.raises(AssertionError, match="more packs of chunk 0 travel than were planned"):
        _run(engine, _in_a_row(5), lambda: [torch.randn(4)])
    with pytest.raises(AssertionError, match="parameters stay"):
        _run(engine, _in_a_row(4), lambda: [torch.nn.Parameter(torch.randn(4))])


def test_what_somebody_else_emptied_is_noticed() -> None:
    engine = OffloadEngine(PlainStreams())
    plan = _in_a_row(4)
    engine.provide(_sizes(plan))

    def empty(index: int, alive: dict[tuple[int, int], list[torch.Tensor]]) -> None:
        alive[0, 0][0].untyped_storage().resize_(0)

    with pytest.raises(AssertionError, match="somebody else emptied"):
        _run(engine, plan, lambda: [torch.randn(4)], empty)


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
