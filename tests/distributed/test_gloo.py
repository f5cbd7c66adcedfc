# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Ranks over gloo: gathers under way at once, and cores that are shared."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import _coalescing_manager

from tests.distributed.harness import run_ranks

# gloo's own coalesced gather ends three runs in four with SIGSEGV or in malloc.
ROUNDS, AT_ONCE, SIZE = 2000, 8, 32


def gather_many() -> list[list[float]]:
    """A job: coalesced gathers of buffers that nobody else holds, and what the last ones bring."""
    rank, size = dist.get_rank(), dist.get_world_size()
    found = []
    for number in range(ROUNDS):
        under_way: list[tuple[Any, torch.Tensor | None]] = []
        for index in range(AT_ONCE):
            whole = torch.full((size * SIZE,), float("nan"))
            shard = whole[rank * SIZE : (rank + 1) * SIZE].fill_(10 * index + rank)
            with _coalescing_manager(dist.group.WORLD, async_ops=True) as handle:
                dist.all_gather_into_tensor(whole, shard, async_op=True)
            under_way.append((handle, whole if number == ROUNDS - 1 else None))
        del whole, shard
        for handle, gathered in under_way:
            handle.wait()
            if gathered is not None:
                found.append(gathered.tolist())
        del handle, gathered
    return found


def test_gathers_under_way_at_once_are_sound() -> None:
    expected = [[10.0 * index + rank for rank in (0, 1) for _ in range(SIZE)] for index in range(8)]
    assert run_ranks("tests.distributed.test_gloo.gather_many", 2) == [expected] * 2


def gather_without_options() -> list[float]:
    """A job: a coalesced gather as PyTorch before 2.13 asks for it, by either name."""
    rank, size = dist.get_rank(), dist.get_world_size()
    whole = torch.full((size,), float("nan"))
    names = ("all_gather_single_coalesced", "allgather_into_tensor_coalesced")
    name = next(name for name in names if hasattr(dist.group.WORLD, name))
    getattr(dist.group.WORLD, name)([whole], [torch.tensor([float(rank)])]).wait()
    return whole.tolist()


def test_gather_takes_no_options() -> None:
    found = run_ranks("tests.distributed.test_gloo.gather_without_options", 2)
    assert found == [[0.0, 1.0]] * 2


def scheduling() -> int:
    """A job: how the kernel treats this rank."""
    return os.sched_getscheduler(0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no SCHED_BATCH")
def test_ranks_do_not_interrupt_each_other() -> None:
    """Four ranks on two cores compute fewer tokens a second otherwise (CHANGELOG.md)."""
    assert run_ranks("tests.distributed.test_gloo.scheduling", 2) == [os.SCHED_BATCH] * 2
