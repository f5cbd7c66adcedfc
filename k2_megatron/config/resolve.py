# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What follows from a configuration: automatic values, and sizes for a number of processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from k2_megatron.config.config import Config
from k2_megatron.config.parallel import ParallelConfig
from k2_megatron.errors import TopologyError

_SHOWN_SUGGESTIONS = 8
# What decides which numbers of processes fit.
BATCH_KEYS = ("schedule.global_batch_size", "schedule.micro_batch_size")
DEGREE_KEYS = (
    "parallel.tensor_model_parallel_size",
    "parallel.pipeline_model_parallel_size",
    "parallel.virtual_pipeline_model_parallel_size",
    "parallel.context_parallel_size",
    "parallel.expert_model_parallel_size",
    "parallel.expert_tensor_parallel_size",
)


def sequence_parallel_of(parallel: ParallelConfig) -> bool:
    """`sequence_parallel`, its automatic value filled in: on exactly with tensor parallelism."""
    if parallel.sequence_parallel is None:
        return parallel.tensor_model_parallel_size > 1
    return parallel.sequence_parallel


def expert_tensor_parallel_size_of(parallel: ParallelConfig) -> int:
    """`expert_tensor_parallel_size`, its automatic value filled in: TP without EP, 1 with it."""
    if parallel.expert_tensor_parallel_size is None:
        with_experts = parallel.expert_model_parallel_size > 1
        return 1 if with_experts else parallel.tensor_model_parallel_size
    return parallel.expert_tensor_parallel_size


def resolve(config: Config) -> Config:
    """Replace automatic values (null) by what they stand for. Resolving twice changes nothing."""
    parallel = replace(
        config.parallel,
        sequence_parallel=sequence_parallel_of(config.parallel),
        expert_tensor_parallel_size=expert_tensor_parallel_size_of(config.parallel),
    )
    return replace(config, parallel=parallel)


@dataclass(frozen=True, kw_only=True)
class WorldSizes:
    """What the number of processes decides.

    Attributes:
        data_parallel_size: copies of the model that read different sequences (DP).
        expert_data_parallel_size: copies of every routed expert.
        num_microbatches: micro-batches each copy computes in one optimizer step.
    """

    data_parallel_size: int
    expert_data_parallel_size: int
    num_microbatches: int


@dataclass(frozen=True)
class _Degrees:
    """The degrees that a number of processes has to fit."""

    dense: int
    expert: int
    pipeline: int
    interleaved: bool
    micro_batches: int

    @staticmethod
    def of(config: Config) -> _Degrees:
        parallel, schedule = config.parallel, config.schedule
        pipeline = parallel.pipeline_model_parallel_size
        tensor, context = parallel.tensor_model_parallel_size, parallel.context_parallel_size
        expert_tensor = expert_tensor_parallel_size_of(parallel)
        return _Degrees(
            dense=tensor * pipeline * context,
            expert=expert_tensor * parallel.expert_model_parallel_size * pipeline,
            pipeline=pipeline,
            interleaved=pipeline > 1 and parallel.virtual_pipeline_model_parallel_size is not None,
            micro_batches=schedule.global_batch_size // schedule.micro_batch_size,
        )

    def fits(self, world_size: int) -> bool:
        data, left = divmod(world_size, self.dense)
        if data < 1 or left or world_size % self.expert or self.micro_batches % data:
            return False
        return not self.interleaved or self.micro_batches // data % self.pipeline == 0


def fitting_world_sizes(config: Config) -> list[int]:
    """Every number of processes that can run the configuration, ascending.

    There are finitely many, because data parallelism divides the number of micro-batches of a
    global batch.
    """
    degrees = _Degrees.of(config)
    total = degrees.micro_batches
    small = [n for n in range(1, math.isqrt(total) + 1) if total % n == 0]
    divisors = sorted({*small, *(total // n for n in small)})
    return [degrees.dense * n for n in divisors if degrees.fits(degrees.dense * n)]


def resolve_world(config: Config, world_size: int) -> WorldSizes:
    """Work out the sizes for a number of processes.

    Args:
        config: a configuration from `load_config`.
        world_size: number of processes, one for each device.

    Raises:
        TopologyError: the processes do not fit; the text tells everything that is wrong and which
            numbers of processes fit.
    """
    degrees = _Degrees.of(config)
    problems = _misfits(config, degrees, world_size)
    if problems:
        fitting = fitting_world_sizes(config)
        by_distance = sorted(fitting, key=lambda n: (abs(n - world_size), n))
        shown = sorted(by_distance[:_SHOWN_SUGGESTIONS])
        numbers = ", ".join(str(n) for n in shown) or "none; change the batch or the degrees"
        more = " are the nearest" if len(fitting) > len(shown) else ""
        count = "1 process does" if world_size == 1 else f"{world_size} processes do"
        text = [f"{count} not fit the parallel layout:", *problems]
        raise TopologyError("\n  ".join(text) + f"\nnumbers of processes that fit: {numbers}{more}")
    data = world_size // degrees.dense
    return WorldSizes(
        data_parallel_size=data,
        expert_data_parallel_size=world_size // degrees.expert,
        num_microbatches=degrees.micro_batches // data,
    )


def _misfits(config: Config, degrees: _Degrees, world_size: int) -> list[str]:
    """Everything that a number of processes breaks, in words."""
    parallel, schedule = config.parallel, config.schedule
    problems = []
    if world_size < 1 or world_size % degrees.dense:
        problems.append(
            f"{world_size} is not a multiple of {degrees.dense} = tensor_model_parallel_size "
            f"{parallel.tensor_model_parallel_size} x pipeline_model_parallel_size "
            f"{degrees.pipeline} x context_parallel_size {parallel.context_parallel_size}"
        )
    if world_size < 1 or world_size % degrees.expert:
        problems.append(
            f"{world_size} is not a multiple of {degrees.expert} = expert_tensor_parallel_size "
            f"{expert_tensor_parallel_size_of(parallel)} x expert_model_parallel_size "
            f"{parallel.expert_model_parallel_size} x pipeline_model_parallel_size "
            f"{degrees.pipeline}"
        )
    data, left = divmod(world_size, degrees.dense)
    if left or data < 1:
        return problems
    if schedule.global_batch_size % (schedule.micro_batch_size * data):
        problems.append(
            f"schedule.global_batch_size {schedule.global_batch_size} is not a multiple of "
            f"schedule.micro_batch_size {schedule.micro_batch_size} x data parallel size {data}"
        )
    elif degrees.interleaved and degrees.micro_batches // data % degrees.pipeline:
        problems.append(
            f"{degrees.micro_batches // data} micro-batches (schedule.global_batch_size "
            f"{schedule.global_batch_size} / schedule.micro_batch_size "
            f"{schedule.micro_batch_size} / data parallel size {data}) are not a multiple of "
            f"pipeline_model_parallel_size {degrees.pipeline}, which interleaving "
            "(virtual_pipeline_model_parallel_size) needs"
        )
    return problems
