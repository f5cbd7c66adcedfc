# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What one rank fails in is told on all, and nobody waits for the one that left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from k2_megatron.errors import AgreedDataError, CheckpointError
from k2_megatron.launch.agreement import agree, from_first_rank
from tests.distributed import agreement_jobs
from tests.distributed.harness import run_ranks

BOTH = pytest.mark.parametrize("function", [agree, from_first_rank])


def ranks(job: str, world_size: int, **given: Any) -> list[Any]:
    return run_ranks(
        f"tests.distributed.agreement_jobs.{job}", world_size, timeout_seconds=30, **given
    )


# What befalls a rank, and what is said of it.
FATES = [
    ("mistake", "runs/tiny/events.jsonl: no checkpoint"),
    ("full_disk", "runs/tiny/events.jsonl: No space left on device"),
    ("no_file", "claiming: No space left on device"),
    ("no_rename", "new -> old: Is a directory"),
]


@pytest.mark.parametrize(("fate", "text"), FATES)
def test_one_ranks_failure_is_every_ranks(fate: str, text: str) -> None:
    """An OSError ended its rank alone, by a traceback."""
    found = ranks("agreed", 3, fates=["nothing", fate, "nothing"])
    assert found == [("AgreedDataError", f"rank 1: {text}")] * 3


@pytest.mark.parametrize(("fate", "text"), FATES)
def test_the_first_ranks_failure_is_every_ranks(fate: str, text: str) -> None:
    """It ended rank 0 alone, whereupon the others stood in the broadcast."""
    text = text if fate == "mistake" else f"rank 0: {text}"
    assert ranks("of_first", 2, fate=fate) == [("AgreedDataError", text)] * 2


def test_failures_of_several_ranks_are_told_together() -> None:
    found = ranks("agreed", 3, fates=["own_mistake", "nothing", "own_mistake"])
    assert found == [("AgreedDataError", "rank 0: found by 0; rank 2: found by 2")] * 3
    found = ranks("agreed", 3, fates=["mistake", "nothing", "mistake"])
    text = "runs/tiny/events.jsonl: no checkpoint"
    assert found == [("AgreedDataError", f"ranks 0, 2: {text}")] * 3
    assert ranks("agreed", 2, fates=["mistake"] * 2) == [("AgreedDataError", text)] * 2


def test_without_a_failure_each_rank_has_its_result() -> None:
    assert ranks("agreed", 2, fates=["nothing"] * 2) == [0, 10]
    assert ranks("of_first", 2, fate="nothing") == ["from 0"] * 2


@BOTH
def test_without_a_process_group(function: Callable[..., Any]) -> None:
    """A mistake stays the error it was; an OSError becomes one that is told without a traceback."""
    with pytest.raises(CheckpointError, match=r"^runs/tiny/events.jsonl: no checkpoint$"):
        function(agreement_jobs.mistake, kind=AgreedDataError)
    with pytest.raises(AgreedDataError, match=r"^reading or writing a file: No space left on dev"):
        function(agreement_jobs.no_file, kind=AgreedDataError)
    assert function(lambda: 3) == 3


@BOTH
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_other_errors_are_left_alone(
    function: Callable[..., Any], error: type[BaseException]
) -> None:
    """A wish to end, and what only a program can cause, keep their traceback."""

    def action() -> None:
        raise error("ours")

    with pytest.raises(error, match=r"^ours$"):
        function(action)
