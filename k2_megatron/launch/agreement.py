# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A user's mistake that one rank finds is every rank's: none is left waiting for it.

`checkpoint/ranks.py` (`Ranks.together`) is another thing: there any error of any rank fails a save
or a load on all of them, as one kind that a run may survive, and the results travel. Here nothing
but a UserError is agreed on, since a program's error must end its rank with its own traceback (the
launcher then ends the others), and the results stay where they are: a lock on a file cannot travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from k2_megatron.errors import AgreedError, UserError

T = TypeVar("T")


def agree(action: Callable[[], T]) -> T:
    """Run `action` on every rank; a UserError on any of them is raised on all. Collective.

    Without a process group there is one rank. With NCCL the device of this rank must be set.

    Raises:
        AgreedError: with the text of the lowest rank that met one.
    """
    if not dist.is_initialized():
        return action()
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
            raise AgreedError(text)
    return result  # type: ignore[return-value]


def from_first_rank(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, which alone runs it. Collective.

    Without a process group there is one rank. With NCCL the device of this rank must be set.
    """
    if not dist.is_initialized():
        return action()
    found: list[Any] = [action() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    result: T = found[0]
    return result
