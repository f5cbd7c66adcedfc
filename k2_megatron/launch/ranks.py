# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which rank this process is, as its launcher says: torchrun, SLURM, or nobody."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from k2_megatron.errors import TopologyError

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """This process among those of the job.

    Attributes:
        sees_own_device: the launcher may have hidden the other ranks' devices from this one.
    """

    rank: int
    local_rank: int
    world_size: int
    sees_own_device: bool = False

    def device_index(self, num_devices: int | None) -> int:
        """Which device this rank takes: its own by number, or the only one it can see.

        SLURM's --gpus-per-task and --gpu-bind show each task no GPU but its own.

        Raises:
            TopologyError: several devices are visible, and fewer than the local ranks.
        """
        if num_devices == 1 and self.sees_own_device:
            return 0
        check_local_ranks(self.local_rank + 1, num_devices)
        return self.local_rank


def launched_rank(environment: Mapping[str, str] = os.environ) -> RankInfo | None:
    """The rank a launcher gave to this process; None where no launcher did.

    Raises:
        TopologyError: the launcher's variables are incomplete, no numbers, or contradict each
            other.
    """
    if any(name in environment for name in _TORCHRUN):
        return _read(environment, *_TORCHRUN)
    # Inside an allocation but not under srun SLURM_PROCID is 0 of one task, or unset.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return replace(_read(environment, *_SLURM), sees_own_device=True)
    return None


def voice(rank: int) -> Callable[[str], None]:
    """What prints a line: rank 0 speaks for all."""
    return print if rank == 0 else lambda text: None


def check_local_ranks(num_ranks: int, num_devices: int | None) -> None:
    """Refuse more ranks on this machine than it has devices.

    Args:
        num_ranks: ranks here, or the highest local rank plus 1.
        num_devices: of this machine; None where ranks need no device of their own.

    Raises:
        TopologyError: there are more ranks than devices.
    """
    if num_devices is not None and num_ranks > num_devices:
        plural = "" if num_devices == 1 else "s"
        raise TopologyError(
            f"{num_ranks} ranks on this machine, which has {num_devices} GPU{plural}; allowed: at "
            f"most {num_devices}, one for each GPU (CUDA_VISIBLE_DEVICES hides GPUs, "
            "K2_MEGATRON_PLATFORM=cpu trains without them)"
        )


def _read(environment: Mapping[str, str], rank: str, local_rank: str, size: str) -> RankInfo:
    values = {}
    for name in (rank, local_rank, size):
        text = environment.get(name)
        # isdecimal alone takes the digits of every script.
        if text is None or not (text.isascii() and text.isdecimal()):
            given = "is not set" if text is None else f"is {text!r}"
            raise TopologyError(
                f"environment variable {name} {given}: a launcher that sets one of {rank}, "
                f"{local_rank}, {size} must set all three, to whole numbers"
            )
        values[name] = int(text)
    found = RankInfo(rank=values[rank], local_rank=values[local_rank], world_size=values[size])
    if found.rank >= found.world_size:
        raise TopologyError(
            f"environment variable {rank} is {found.rank} and {size} is {found.world_size}; "
            f"allowed: ranks from 0 to {size} - 1"
        )
    _check_address(environment, size)
    return found


def _check_address(environment: Mapping[str, str], size: str) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise TopologyError(
                f"environment variable {name} is not set, though {size} is: all processes need "
                "MASTER_ADDR, the host of rank 0, and MASTER_PORT, a free port there. torchrun "
                "sets both; before srun: export MASTER_PORT=29500 MASTER_ADDR=$(scontrol show "
                'hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
            )
