# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""torch.distributed for the length of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from k2_megatron.launch.ranks import RankInfo
from k2_megatron.platform.base import Platform


@contextmanager
def process_group(platform: Platform, ranks: RankInfo, *, timeout_seconds: float) -> Iterator[None]:
    """Prepare the device, connect all ranks, and part from them at the end.

    Args:
        platform: chooses device and backend.
        ranks: this rank and their number.
        timeout_seconds: how long a collective waits for the others.
    """
    platform.prepare(ranks.local_rank)
    dist.init_process_group(
        platform.backend,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeout_seconds),
        **platform.process_group_options(),
    )
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
