# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""How long a step takes: an estimate from a few measured rates, never a promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k2_megatron.planner.communication import Traffic, message_seconds
from k2_megatron.planner.flops import model_flops_per_token
from k2_megatron.planner.job import Job
from k2_megatron.planner.newton_schulz import StageWork
from k2_megatron.planner.schedule import pipeline_seconds
from k2_megatron.planner.stage_times import stage_times
from k2_megatron.planner.states import States


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of one step and what they are made of.

    Attributes:
        compute_seconds: of the slowest pipeline rank: matrix products, attention, recomputation,
            and communication inside its layers that is not hidden.
        bubble_seconds: in which that rank waits for others.
        data_seconds: reduction of gradients and gathering of weights that is not hidden.
        optimizer_seconds: Newton-Schulz of the longest queue, and the element-wise update.
        bubble: bubble_seconds over the time of the pipeline.
        flops_per_token: by the formula of `flops`.
    """

    compute_seconds: float
    bubble_seconds: float
    data_seconds: float
    optimizer_seconds: float
    bubble: float
    flops_per_token: float
    tokens: int
    num_gpus: int

    @property
    def step_seconds(self) -> float:
        """Everything after each other."""
        return (
            self.compute_seconds + self.bubble_seconds + self.data_seconds + self.optimizer_seconds
        )

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens per second and GPU."""
        return self.tokens / self.step_seconds / self.num_gpus

    @property
    def flops_per_gpu(self) -> float:
        """Model FLOP/s of a GPU."""
        return self.tokens_per_gpu * self.flops_per_token


def estimate(
    job: Job,
    states: Sequence[States],
    messages: Sequence[Traffic],
    work: Sequence[StageWork],
) -> Estimate:
    """The time of one step on `job.gpu`."""
    degrees, parallel, sizes = job.degrees, job.config.parallel, job.sizes
    times = [stage_times(job, stage) for stage in job.layout.stages]
    total, work_seconds = pipeline_seconds(
        degrees.pipeline,
        degrees.virtual,
        sizes.num_microbatches,
        parallel.overlap_moe_expert_parallel_comm,
        [one.forward for one in times],
        [one.backward for one in times],
        times[0].send,
    )
    data = sum(_seconds(job, one) for one in messages if one.group in ("dp", "edp", "stage"))
    schedule = job.config.schedule
    return Estimate(
        compute_seconds=work_seconds,
        bubble_seconds=total - work_seconds,
        data_seconds=data,
        optimizer_seconds=_optimizer(job, states, work),
        bubble=(total - work_seconds) / total,
        flops_per_token=model_flops_per_token(job.config.model, schedule.seq_length),
        tokens=schedule.global_batch_size * schedule.seq_length,
        num_gpus=job.num_gpus,
    )


def _seconds(job: Job, one: Traffic) -> float:
    """Time of a message that is not hidden."""
    return message_seconds(job, one.group, one.sent_bytes, overlapped=one.overlapped)


def _optimizer(job: Job, states: Sequence[States], work: Sequence[StageWork]) -> float:
    """Longest Newton-Schulz queue, and gradient, master, moments and weights read and written.

    Or the travel of what is in host memory, both ways at once, where that takes longer.
    """
    products = max((one.longest for one in work), default=0.0) / job.gpu.newton_schulz_flops
    bytes_moved = max(
        4 * (one.owned.muon + one.owned.adamw) + 2 * one.optimizer_bytes for one in states
    )
    travel = max(one.host_bytes for one in states) / job.gpu.host_rate
    return max(products + bytes_moved / job.gpu.memory_rate, travel)
