# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A run whose plan does not fit its devices is refused with the plan before anything starts."""

from __future__ import annotations

from functools import partial

from k2_megatron.config.config import Config
from k2_megatron.config.memory import names_host
from k2_megatron.errors import ConfigError, UserError
from k2_megatron.planner.hardware import GPUS, OUTSIDE_ALLOCATOR_BYTES, Gpu
from k2_megatron.planner.job import Job, job_of
from k2_megatron.planner.nearest import nearest_text
from k2_megatron.planner.offload import something_travels
from k2_megatron.planner.phase_peaks import PhasePeak, peaks_of_phases
from k2_megatron.planner.plan import Plan, finish_plan
from k2_megatron.planner.text import gib, memory_table


def gpu_of_job(config: Config, given: str | None) -> Gpu | None:
    """The kind of the job's GPUs; None where nobody says it, or it is none that the planner knows.

    Args:
        config: its `cluster.gpu_type` is read where `given` is None, in any case of letters.
        given: a key of `GPUS`.

    Raises:
        UserError: a kind is given, and the job has no GPU.
    """
    if given is not None and not config.cluster.gpus_per_node:
        raise UserError(f"--gpu {given}: cluster.gpus_per_node is 0; allowed: leaving it out")
    return GPUS.get(given or (config.cluster.gpu_type or "").upper())


def check_job(config: Config, gpu: Gpu | None) -> str | None:
    """Check that every phase of the job fits on its GPUs, as far as that is known.

    Args:
        config: with a job.
        gpu: their kind.

    Returns:
        Why memory could not be checked, if so. A job without GPUs has nothing to check: its ranks
        look at the memory of their machine when they start.

    Raises:
        UserError: a phase needs more memory than a GPU has.
    """
    cluster = config.cluster
    assert cluster.nodes is not None, "rendering its script has refused it"
    if not cluster.gpus_per_node:
        return None
    if gpu is None:
        given = cluster.gpu_type or "not given"
        return (
            f"memory is not checked: cluster.gpu_type is {given}; known: {', '.join(GPUS)} "
            "(launch --gpu names one for the check alone)"
        )
    job = partial(
        job_of,
        num_gpus=cluster.nodes * cluster.gpus_per_node,
        gpu=gpu,
        gpus_per_node=cluster.gpus_per_node,
    )
    for peak in peaks_of_phases(config, job):
        try:
            _check_phase(peak)
        except UserError as error:
            if not peak.phase.name:
                raise
            raise UserError(f"phase {peak.phase.name}: {error}") from error
    return None


def _check_phase(peak: PhasePeak) -> None:
    assert isinstance(peak.job, Job), "a rule has checked the number of nodes"
    refuse_host_memory_in_vain(peak.job)
    plan = finish_plan(peak.job, peak.ranks, place_matrices=False)
    refuse_host_state_in_vain(plan)
    refuse_excess(
        plan,
        plan.peak_bytes,
        what="the fullest rank",
        outcome="Nothing was submitted.",
        reserve=OUTSIDE_ALLOCATOR_BYTES,
    )


def refuse_excess(plan: Plan, needed: float, *, what: str, outcome: str, reserve: int = 0) -> None:
    """Refuse a plan that needs more than its device has.

    Args:
        plan: its job's `gpu` is the device.
        needed: bytes.
        what: needs them.
        outcome: what has not happened because of it.
        reserve: bytes of the device that the plan cannot have.

    Raises:
        UserError: it does not fit; the text has the plan's rows.
    """
    device = plan.job.gpu
    if needed > device.memory_bytes - reserve:
        left = f", of which {gib(reserve)} are left to CUDA, NCCL and gaps" if reserve else ""
        raise UserError(
            f"memory: {what} would need {gib(needed)} GiB; {device.name} has "
            f"{gib(device.memory_bytes)} GiB{left}. {outcome}\n\n"
            "Device memory, GiB by pipeline rank\n\n"
            f"{memory_table(plan)}\n\n"
            "Fewer layers or experts, a smaller micro-batch or sequence, or more processes need "
            "less; `k2-megatron plan CONFIG --set ...` tells how much.\n"
            f"{nearest_text(plan)}"
        )


def refuse_host_memory_in_vain(job: Job) -> None:
    """Refuse activations in host memory where none would leave the device.

    Raises:
        ConfigError: what would let them leave.
    """
    if names_host(job.config.memory) and not something_travels(job):
        raise ConfigError(
            f"memory: given activations in host memory and {job.sizes.num_microbatches} "
            "micro-batches a step; allowed: more of them (schedule.global_batch_size), or the "
            "policies without host memory; backward follows forward so soon that nothing leaves"
        )


def refuse_host_state_in_vain(plan: Plan) -> None:
    """Refuse a part of the optimizer's state in host memory that is none.

    Raises:
        ConfigError: no process has so small a part.
    """
    fraction = plan.job.config.optimizer.optimizer_offload_fraction
    if fraction and not any(rank.states.host_bytes for rank in plan.ranks):
        raise ConfigError(
            f"optimizer.optimizer_offload_fraction: given {fraction}; allowed: 0, or more: no "
            "process owns a part of a parameter that is so small a part of its state"
        )
