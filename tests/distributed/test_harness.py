# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The harness tells which rank failed and why, ends ranks that hang, and goes on afterwards."""

from __future__ import annotations

import time

import pytest

from tests.distributed.harness import run_ranks


def test_results_come_in_rank_order() -> None:
    assert run_ranks("rank_and_size", 3) == [(0, 3), (1, 3), (2, 3)]


def test_a_failure_shows_its_rank_and_log() -> None:
    with pytest.raises(AssertionError) as caught:
        run_ranks("fail_on", 2, rank=1, text="the reason")
    text = str(caught.value)
    assert "rank 1 ended with status 1" in text
    assert "ValueError: the reason" in text
    assert run_ranks("rank_and_size", 2) == [(0, 2), (1, 2)], "the next job runs"


def test_ranks_that_hang_are_killed_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"rank 1 was killed: it did not end in time"):
        run_ranks("hang_on", 2, rank=1, timeout_seconds=3)
    assert time.monotonic() - began < 20
