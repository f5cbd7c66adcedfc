# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What ranks get from `agree` and `from_first_rank` where some of them fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from k2_megatron.errors import AgreedDataError, CheckpointError, UserError
from k2_megatron.launch.agreement import agree, from_first_rank

FILE = "runs/tiny/events.jsonl"


def mistake() -> None:
    """What a user can cause."""
    raise CheckpointError(f"{FILE}: no checkpoint")


def full_disk() -> None:
    """A disk that refuses a file."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), FILE)


def no_file() -> None:
    """The same, as a write to an open file raises it."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_rename() -> None:
    """Two files."""
    raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), "new", None, "old")


def own_mistake() -> None:
    """One that differs from rank to rank."""
    raise CheckpointError(f"found by {dist.get_rank()}")


def nothing() -> None:
    """All goes well."""


def agreed(fates: list[str]) -> Any:
    """What `agree` gives or raises where each rank meets its fate; its result cannot travel."""

    def action() -> Callable[[], int]:
        globals()[fates[dist.get_rank()]]()
        return lambda: 10 * dist.get_rank()

    return _told(lambda: agree(action, doing="claiming", kind=AgreedDataError)())


def of_first(fate: str) -> Any:
    """What `from_first_rank` gives or raises; no other rank may act."""

    def action() -> str:
        assert dist.get_rank() == 0
        globals()[fate]()
        return "from 0"

    return _told(lambda: from_first_rank(action, doing="claiming", kind=AgreedDataError))


def _told(action: Callable[[], Any]) -> Any:
    """Its result, or type and text of the error; then the ranks must meet once more."""
    try:
        found = action()
    except UserError as error:
        found = type(error).__name__, str(error)
    dist.barrier()
    return found
