# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The plan of a run beside the device it is about to take, and beside what it then took."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from k2_megatron.config.config import Config
from k2_megatron.errors import UserError
from k2_megatron.planner.hardware import GPUS
from k2_megatron.planner.job import job_of
from k2_megatron.planner.plan import Plan, make_plan
from k2_megatron.planner.text import gib, memory_table
from k2_megatron.platform.base import Platform

MEASURED_AFTER_STEPS = 2
_WARN_BEYOND = 0.1


@dataclass(frozen=True, kw_only=True)
class MemoryCheck:
    """What a run needs by its plan."""

    plan: Plan

    def compare(self, measured_bytes: int | None) -> str | None:
        """Predicted beside measured peak of the fullest rank; None where nothing is measured."""
        if measured_bytes is None:
            return None
        predicted = self.plan.peak_bytes
        error = predicted / measured_bytes - 1
        text = (
            f"peak memory of the fullest rank: {gib(predicted)} GiB planned, "
            f"{gib(measured_bytes)} GiB measured ({100 * error:+.1f} %)"
        )
        return f"warning: {text}" if abs(error) > _WARN_BEYOND else text


def check_memory(config: Config, platform: Platform, world_size: int) -> MemoryCheck:
    """Plan the run on this platform; refuse it where it cannot fit. Before torch.distributed.

    On a GPU each rank has a device of its own. On a CPU all ranks of the machine share its memory,
    and what the plan says of them is rough: it is refused where the plan is above all there is.

    Raises:
        UserError: more memory is planned than there is; the text has the plan.
    """
    capacity = platform.memory_bytes()
    on_gpu = platform.uses_transformer_engine
    device = replace(GPUS["H100"], name=platform.memory_name(), memory_bytes=capacity)
    plan = make_plan(job_of(config, world_size, gpu=device, on_gpu=on_gpu), place_matrices=False)
    needed = plan.peak_bytes if on_gpu else _on_this_host(plan)
    if needed > capacity:
        what = "the fullest rank" if on_gpu else "its ranks on this machine"
        raise UserError(
            f"memory: {what} would need {gib(needed)} GiB; {platform.memory_name()} has "
            f"{gib(capacity)} GiB. Nothing was started.\n\nDevice memory, GiB by pipeline rank\n\n"
            f"{memory_table(plan)}\n\nFewer layers or experts, a smaller micro-batch or sequence, "
            "or more processes need less; `k2-megatron plan CONFIG --set ...` tells how much."
        )
    return MemoryCheck(plan=plan)


def _on_this_host(plan: Plan) -> float:
    """Bytes of all ranks that this machine runs, by the launcher's word; all of them without it."""
    ranks = plan.job.degrees.stage
    total = sum(rank.total_bytes for rank in plan.ranks) * ranks
    here = re.match(  # srun says "8(x2)" for eight on each of two machines
        r"\d+",
        os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""),
    )
    share = int(here[0]) / plan.job.num_gpus if here else 1.0
    return total * min(1.0, share)
