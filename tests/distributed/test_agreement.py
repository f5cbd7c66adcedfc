# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A mistake that one rank finds is told on all, and nobody waits for the one that left."""

from __future__ import annotations

from tests.distributed.harness import run_ranks


def test_one_ranks_mistake_is_every_ranks() -> None:
    found = run_ranks("agreement", 3, wrong=1, timeout_seconds=30)
    assert found == ["rank 1 found it"] * 3


def test_without_a_mistake_each_rank_has_its_result() -> None:
    assert run_ranks("agreement", 2, wrong=None) == [0, 10]
