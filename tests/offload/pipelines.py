# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines for the tests of offload, and a run through one that looks at what comes back."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from k2_megatron.offload.engine import OffloadEngine
from k2_megatron.offload.sizes import ALIGNMENT, PoolSize, pool_sizes
from k2_megatron.offload.slots import Itinerary, itinerary, slots_of
from k2_megatron.planner.offload import travel_plan


def itinerary_of(
    rank: int,
    pipeline: int,
    virtual: int,
    count: int,
    *,
    overlap: bool,
    num_layers: tuple[int, ...] = (),
) -> Itinerary:
    """What a rank does, by the planner."""
    return travel_plan(rank, pipeline, virtual, count, overlap, num_layers)


def random_itinerary(shuffled: random.Random) -> Itinerary:
    """Up to 8 stages, 4 chunks each, and 4 rounds of micro-batches; overlapped or not."""
    pipeline = shuffled.choice([1, 2, 3, 4, 8])
    virtual = 1 if pipeline == 1 else shuffled.choice([1, 2, 4])
    count = pipeline * shuffled.randint(1, 4) if virtual > 1 else shuffled.randint(1, 4 * pipeline)
    overlap = shuffled.random() < 0.5 and (pipeline == 1 or virtual > 1)
    rank = shuffled.randrange(pipeline)
    return itinerary_of(rank, pipeline, virtual, count, overlap=overlap)


PACK_BYTES = 8 * ALIGNMENT


def sizes(plan: Itinerary, block_bytes: int = PACK_BYTES) -> tuple[PoolSize, ...]:
    """Blocks of that size for up to 4 chunks."""
    return pool_sizes(plan, [block_bytes] * 4)


def in_a_row(count: int) -> Itinerary:
    """All forwards, then all backwards in the same order."""
    packs = [(0, index) for index in range(count)]
    return itinerary(
        slots_of([*((True, p) for p in packs), *((False, p) for p in packs)], num_pairs=0)
    )


def run(
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


class Square(torch.autograd.Function):
    """Saves its input, as a layer does."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient
