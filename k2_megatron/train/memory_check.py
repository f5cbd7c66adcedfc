# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The plan of a run beside the device it is about to take, and beside what it then took."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from k2_megatron.config.config import Config
from k2_megatron.config.memory import names_host
from k2_megatron.errors import UserError
from k2_megatron.launch.memory import (
    refuse_excess,
    refuse_host_memory_in_vain,
    refuse_host_state_in_vain,
)
from k2_megatron.planner.hardware import GPUS
from k2_megatron.planner.job import job_of
from k2_megatron.planner.place import within_memory
from k2_megatron.planner.plan import Plan, make_plan
from k2_megatron.planner.text import gib
from k2_megatron.platform.base import Platform
from k2_megatron.platform.host_memory import available_bytes

MEASURED_AFTER_STEPS = 2
_WARN_BEYOND = 0.1


@dataclass(frozen=True, kw_only=True)
class MemoryCheck:
    """What a run needs by its plan.

    Attributes:
        plan: its job's configuration has the layout written out where memory decided it.
    """

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
    job = within_memory(job_of(config, world_size, gpu=device, on_gpu=on_gpu))
    plan = make_plan(job, place_matrices=False)
    _check_host(plan, on_gpu=on_gpu)
    needed = plan.peak_bytes if on_gpu else _on_this_host(plan)
    what = "the fullest rank" if on_gpu else "its ranks on this machine"
    refuse_excess(plan, needed, what=what, outcome="Nothing was started.")
    return MemoryCheck(plan=plan)


def _check_host(plan: Plan, *, on_gpu: bool) -> None:
    """Refuse host memory for what would not go there, or that the host lacks.

    Raises:
        UserError: why.
    """
    config = plan.job.config
    fraction = config.optimizer.optimizer_offload_fraction
    what, remedies = [], []
    if names_host(config.memory):
        refuse_host_memory_in_vain(plan.job)
        what.append("the activations that leave the devices of this machine")
        remedies.append(
            "memory.host_budget limits them, and a preset without host memory needs none"
        )
    if fraction:
        refuse_host_state_in_vain(plan)
        what.append("the optimizer's state in host memory")
        remedies.append("a smaller optimizer.optimizer_offload_fraction needs less")
    if not what:
        return
    room = available_bytes()
    each = [rank.host_bytes for rank in plan.ranks]
    if config.checkpoint.async_save:
        each = [
            size + rank.states.optimizer_bytes for size, rank in zip(each, plan.ranks, strict=True)
        ]
        what.append("the copy that a save in the background makes")
        remedies.append("checkpoint.async_save: false needs none")
    needed = _share_here(plan) * sum(each)
    needed *= plan.job.degrees.stage
    if room is not None and needed > room:
        kind = "page-locked memory" if on_gpu else "memory"
        single = len(what) == 1 and bool(fraction)
        raise UserError(
            f"memory: {' and '.join(what)} need{'s' * single} "
            f"{gib(needed)} GiB of {kind}; {gib(room)} GiB are available. Nothing was started. "
            f"{'; '.join(remedies)}"
        )


def _on_this_host(plan: Plan) -> float:
    """Bytes of all ranks that this machine runs."""
    on_host = sum(rank.total_bytes + rank.host_bytes for rank in plan.ranks)
    return on_host * plan.job.degrees.stage * _share_here(plan)


def _share_here(plan: Plan) -> float:
    """Which part of the ranks this machine runs, by the launcher's word; all of them without it."""
    here = re.match(  # srun says "8(x2)" for eight on each of two machines
        r"\d+",
        os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""),
    )
    return min(1.0, int(here[0]) / plan.job.num_gpus) if here else 1.0
