# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Random pipelines for the tests of offload."""

from __future__ import annotations

import random

from k2_megatron.offload.slots import Itinerary

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
