# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A user's mistake that one rank finds is every rank's: none is left waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from k2_megatron.errors import UserError

T = TypeVar("T")


def agree(action: Callable[[], T]) -> T:
    """Run `action` on every rank; a UserError on any of them is raised on all. Collective.

    With NCCL the device of this rank must be set.

    Raises:
        UserError: with the text of the lowest rank that met one.
    """
    result: T | None = None
    problem: str | None = None
    try:
        result = action()
    except UserError as error:
        problem = str(error)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for text in problems:
        if text is not None:
            raise UserError(text)
    return result  # type: ignore[return-value]


def from_first_rank(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, which alone runs it. Collective.

    With NCCL the device of this rank must be set.
    """
    found: list[Any] = [action() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    result: T = found[0]
    return result
