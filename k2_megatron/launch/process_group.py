# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""torch.distributed for the length of a run, or of another command of several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from k2_megatron.errors import AgreedError, TrainingStoppedError
from k2_megatron.launch.ranks import RankInfo


@contextmanager
def process_group(
    backend: str, ranks: RankInfo, *, timeout_seconds: float, **options: Any
) -> Iterator[None]:
    """Connect all ranks, and part from them when all went well or all met one mistake.

    Args:
        backend: "gloo" or "nccl".
        ranks: this rank and their number.
        timeout_seconds: how long a collective waits for the others.
        options: of a platform (`process_group_options`).
    """
    dist.init_process_group(
        backend,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeout_seconds),
        **options,
    )
    try:
        yield
    except (AgreedError, TrainingStoppedError):
        # All ranks have it, at the same place: no collective is under way.
        dist.destroy_process_group()
        raise
    # Not after another error: a group with a collective under way would wait for ranks that are
    # gone, and the cause would come late or never. A process that dies leaves nothing to tidy up.
    dist.barrier()
    dist.destroy_process_group()
