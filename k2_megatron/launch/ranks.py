# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which rank this process is, as its launcher says: torchrun, SLURM, or nobody."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from k2_megatron.errors import TopologyError


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """This process among those of the job."""

    rank: int
    local_rank: int
    world_size: int


def launched_rank(environment: Mapping[str, str] = os.environ) -> RankInfo | None:
    """The rank a launcher gave to this process; None where no launcher did.

    Raises:
        TopologyError: the launcher's variables are incomplete or no numbers.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return _read(environment, "RANK", "LOCAL_RANK", "WORLD_SIZE")
    # Inside an allocation but not under srun SLURM_PROCID is 0 of one task, or unset.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _read(environment, "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
    return None


def _read(environment: Mapping[str, str], rank: str, local_rank: str, size: str) -> RankInfo:
    values = {}
    for name in (rank, local_rank, size):
        text = environment.get(name)
        if text is None or not text.isdecimal():
            raise TopologyError(
                f"environment variable {name}={text!r}: a launcher that sets one of {rank}, "
                f"{local_rank}, {size} must set all three to whole numbers"
            )
        values[name] = int(text)
    return RankInfo(rank=values[rank], local_rank=values[local_rank], world_size=values[size])
