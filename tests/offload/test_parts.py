# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Packs come back in parts, and backward waits for the part that it reads next."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from k2_megatron.offload.engine import OffloadEngine
from k2_megatron.offload.streams import PlainStreams
from tests.offload.delayed_streams import DelayedStreams
from tests.offload.pipelines import Square, in_a_row, itinerary_of, sizes


class NothingIsEarly(DelayedStreams):
    """What has come has been waited for.

    Attributes:
        done: marks that were waited for in backward.
    """

    def __init__(self):
        super().__init__()
        self.done = []

    def wait(self, mark, queue):
        super().wait(mark, queue)
        if queue == "in":
            self.done.append(mark)

    def _do_some(self):
        pass


Layer = Callable[[OffloadEngine, torch.Tensor], tuple[torch.Tensor, list[torch.Tensor]]]


def come_back(layer: Layer, squares: int, count: int) -> None:
    """Four packs of `count` layers: the gradients are those of a program without offload, only what
    backward reads first is there when a slot begins, and each tensor is waited for once.

    Args:
        layer: from its input to its output and the tensors that it has taken, in order of forward.
        squares: that it computes, each of which saves its input.
    """
    streams = NothingIsEarly()
    engine = OffloadEngine(streams)
    plan = in_a_row(4)
    engine.provide(sizes(plan))
    packs = []
    with engine.running(plan):
        for index in range(4):
            engine.begin(forward=True, backward=False)
            start = torch.rand(16, generator=torch.Generator().manual_seed(index)) + 0.5
            begins = [start.clone().requires_grad_() for _ in range(2)]
            plain, seen, inputs = begins[0] * 1.0, begins[1] * 1.0, []
            for _ in range(count):
                engine.begin_layer(seen)
                seen, taken = layer(engine, seen)
                inputs += [tensor.detach() for tensor in taken]
            for _ in range(count * squares):
                plain = Square.apply(plain)
            packs.append((begins, plain, seen, inputs))
        for begins, plain, seen, inputs in packs:
            streams.done.clear()
            engine.begin(forward=False, backward=True)
            away = [bool(x.isnan().any()) for x in inputs]
            assert away == [True] * (count * squares - 1) + [False]
            plain.sum().backward()
            seen.sum().backward()
            assert torch.equal(begins[0].grad, begins[1].grad)
            assert len(streams.done) == len(set(streams.done)) == count * squares


def test_pack_comes_back_part_by_part() -> None:
    """Backward waits for what it reads next, and for no more; late parts are NaN until then."""

    def layer(engine, seen):
        engine.take(seen)
        return Square.apply(seen), [seen]

    come_back(layer, squares=1, count=5)


def test_pack_comes_back_as_a_whole_where_a_forward_runs_beside() -> None:
    engine = OffloadEngine(DelayedStreams())
    plan = itinerary_of(0, 2, 2, 8, overlap=True)
    paired = [slot for slot in plan.slots if slot.forward and slot.backward in plan.journeys]
    engine.provide(sizes(plan))
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
    plan = in_a_row(4)
    engine.provide(sizes(plan))
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


def test_what_is_read_later_comes_back_behind_the_rest_of_its_part() -> None:
    """Of each layer the second square reads `middle` before the first one reads `seen`."""

    def layer(engine, seen):
        middle = Square.apply(seen)
        with engine.read_later(middle):
            engine.take(seen)
        engine.take(middle)
        return Square.apply(middle), [seen, middle]

    come_back(layer, squares=2, count=3)


def test_a_part_may_have_nothing_but_what_is_read_later() -> None:
    """Or nothing at all, where its block is full."""
    for taken in ([0], [1], []):
        engine = OffloadEngine(DelayedStreams())
        plan = in_a_row(4)
        engine.provide(sizes(plan))
        packs = []
        with engine.running(plan):
            for _ in range(4):
                engine.begin(forward=True, backward=False)
                start = torch.rand(16).requires_grad_()
                seen = start * 1.0
                middle = Square.apply(seen)
                with engine.read_later(middle):
                    if 0 in taken:
                        engine.take(seen)
                if 1 in taken:
                    engine.take(middle)
                packs.append((start, Square.apply(middle)))
            for start, output in packs:
                engine.begin(forward=False, backward=True)
                output.sum().backward()
                torch.testing.assert_close(start.grad, 4 * start.detach() ** 3)
