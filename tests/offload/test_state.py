# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizer state on the host, by itself: what is chosen, and that sweeps work on all of it."""

from __future__ import annotations

import random

import pytest
import torch

from k2_megatron.offload import sizes, state, state_streams
from k2_megatron.offload.sizes import aligned, on_host, state_room_bytes
from k2_megatron.offload.state import HostState
from tests.offload.delayed_state_streams import DelayedStateStreams

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(20))
def test_chosen_shards_are_the_fraction_but_for_one(seed: int) -> None:
    chance = random.Random(seed)
    shards = [[chance.choice((0, 4, 100, 4000))] * chance.randint(1, 3) for _ in range(40)]
    bytes_of = [sum(shard) for shard in shards]
    for fraction in (0.0, 0.1, 0.5, 0.75, 1.0):
        chosen = on_host(shards, fraction)
        for count in range(len(shards) + 1):
            seen, away = sum(bytes_of[:count]), zip(bytes_of[:count], chosen, strict=False)
            placed = sum(size for size, is_away in away if is_away)
            assert fraction * seen - max([0, *bytes_of[:count]]) <= placed <= fraction * seen
    assert on_host(shards, 1.0) == [size > 0 for size in bytes_of]


@pytest.mark.parametrize("seed", range(20))
def test_sweeps_change_every_element_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows at distances, of both widths, alone and in threes, in a first and in later sweeps."""
    chance = random.Random(seed)
    monkeypatch.setattr(sizes, "STATE_BUFFER_BYTES", 512 * chance.randint(1, 4))
    monkeypatch.setattr(state, "NUM_STATE_BUFFERS", chance.randint(3, 7))
    monkeypatch.setattr(state_streams, "state_streams", lambda _: DelayedStateStreams(seed))
    counts = [chance.randint(1, 900) for _ in range(6)]
    dtypes = [chance.choice((torch.float32, torch.bfloat16)) for _ in counts]
    threes = [chance.randint(1, 900) for _ in range(2)]
    tensor_bytes = [n * dtype.itemsize for n, dtype in zip(counts, dtypes, strict=True)]
    host = HostState([*tensor_bytes, *(4 * n for n in threes for _ in range(2))], CPU)
    alone = [host.place(n, dtype) for n, dtype in zip(counts, dtypes, strict=True)]
    # Two on the host and one that is not.
    groups = [
        [*(host.place(n, torch.float32)[None] for _ in range(2)), torch.zeros(1, n)] for n in threes
    ]
    assert host.total_bytes == state_room_bytes(tensor_bytes) + sum(
        2 * aligned(4 * n) for n in threes
    )
    for sweep in range(1, 4):
        with host.sweep("one"):
            for values in alone:
                for view in _halves(values):
                    for _, _, (here,) in host.visit(view):
                        here += 1
            for group in groups:
                for _, _, parts in host.visit(*group):
                    for index, here in enumerate(parts):
                        here += index + 1
        host.settle()
        for values in alone:
            assert torch.equal(values, torch.full_like(values, sweep))
        for group in groups:
            for index, values in enumerate(group):
                assert torch.equal(values, torch.full_like(values, sweep * (index + 1)))


def _halves(values: torch.Tensor) -> list[torch.Tensor]:
    """Views [r, n] that tile a tensor: alternating runs of eight, and what is left."""
    runs = values.numel() // 16
    rows = values[: 16 * runs].view(runs, 16)
    found = [rows[:, :8], rows[:, 8:], values[16 * runs :][None]]
    return [view for view in found if view.numel()]


def test_another_order_is_refused() -> None:
    host = HostState([40, 40], CPU)
    one, two = (host.place(10, torch.float32)[None] for _ in range(2))

    def sweep(*order: torch.Tensor) -> None:
        with host.sweep("one"):
            for tensor in order:
                for _ in host.visit(tensor):
                    pass

    sweep(one, two)
    with pytest.raises(AssertionError, match="another order"):
        sweep(two, one)
    with pytest.raises(AssertionError, match="before its end"):
        sweep(one)
    with pytest.raises(AssertionError, match="outside of a sweep"):
        list(host.visit(one))


def test_nothing_on_the_host_is_left_alone() -> None:
    host, values = HostState([], CPU), torch.zeros(2, 3)
    with host.sweep("one"):
        ((rows, cols, (here,)),) = host.visit(values)
    assert here is values
    assert (values[rows, cols].shape, host.total_bytes) == (values.shape, 0)
