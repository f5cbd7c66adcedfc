# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What of a rank's activations is in host memory, when, and how much of it that takes."""

from __future__ import annotations

from functools import lru_cache

from k2_megatron.config.config import Config
from k2_megatron.config.memory import budget_of
from k2_megatron.memory.policy import Policy
from k2_megatron.model.shape import pipeline_layout
from k2_megatron.offload.sizes import ALIGNMENT, PoolSize, aligned, pool_sizes, total_bytes, within
from k2_megatron.offload.slots import Itinerary, itinerary, slots_of
from k2_megatron.parallel.layout import PipelineLayout, Stage
from k2_megatron.planner.activations import stage_tensors
from k2_megatron.planner.job import Job
from k2_megatron.planner.schedule import operations, warmup_forwards

# Micro-batches a rank after which the pool has been as full as it gets.
_ROUNDS = 4


@lru_cache(maxsize=512)
def travel_plan(
    rank: int,
    pipeline: int,
    virtual: int,
    num_microbatches: int,
    overlap: bool,
    num_layers: tuple[int, ...] = (),
) -> Itinerary:
    """Which packs of a pipeline rank leave the device in one step, and when.

    Args:
        num_layers: of the rank's chunks; without them no pack travels by layer.
    """
    shape = rank, pipeline, virtual, num_microbatches, overlap
    order = [(one.forward, (one.chunk, one.micro_batch)) for one in operations(*shape)]
    forwards = num_microbatches * virtual
    num_pairs = forwards - warmup_forwards(*shape) if overlap else 0
    return itinerary(slots_of(order, num_pairs), num_layers)


def layer_counts(layout: PipelineLayout, rank: int) -> tuple[int, ...]:
    """Layers of each chunk of a rank, MTP layers too."""
    return tuple(len(stage.layers) + len(stage.mtp_layers) for stage in layout.chunks(rank))


def job_travel_plan(job: Job, rank: int, num_microbatches: int | None = None) -> Itinerary:
    """The same for a job, and no more micro-batches than show all there is.

    Args:
        num_microbatches: None: the job's.
    """
    degrees = job.degrees
    count = job.sizes.num_microbatches if num_microbatches is None else num_microbatches
    return travel_plan(
        rank,
        degrees.pipeline,
        degrees.virtual,
        min(count, _ROUNDS * degrees.pipeline),
        job.config.parallel.overlap_moe_expert_parallel_comm,
        layer_counts(job.layout, rank),
    )


def can_travel(config: Config) -> bool:
    """Whether anything could leave any rank, given enough micro-batches.

    Raises:
        ConfigError: no layout fits the configuration.
    """
    parallel = config.parallel
    pipeline = parallel.pipeline_model_parallel_size
    virtual = parallel.virtual_pipeline_model_parallel_size or 1
    overlap = parallel.overlap_moe_expert_parallel_comm
    # The first rank's micro-batches wait longest.
    if travel_plan(0, pipeline, virtual, _ROUNDS * pipeline, overlap).journeys:
        return True
    layout = pipeline_layout(config)
    counts = [layer_counts(layout, rank) for rank in range(pipeline)]
    return any(
        travel_plan(rank, pipeline, virtual, _ROUNDS * pipeline, overlap, counts[rank]).by_layer
        for rank in range(pipeline)
    )


def something_travels(job: Job) -> bool:
    """Whether any rank has an activation with a host policy that leaves the device."""
    return any(rank_pool(job, rank, whole=True) for rank in range(job.degrees.pipeline))


def pack_bytes(job: Job, stage: Stage) -> int:
    """Room in host memory for one micro-batch of a chunk.

    Tokens of routed experts get `memory.host_headroom` times an even share.
    """
    total = 0
    for count, tensor, policy in stage_tensors(job, stage):
        size = tensor.host_bytes(policy, max(job.imbalance, job.config.memory.host_headroom))
        if size:
            # The values and the scales of an FP8 copy are two tensors.
            total += count * (aligned(size) + (ALIGNMENT if policy is Policy.FP8_HOST else 0))
    return total


def rank_pool(
    job: Job, rank: int, *, whole: bool = False, num_microbatches: int | None = None
) -> tuple[PoolSize, ...]:
    """The blocks that a rank of a stage allocates; none where nothing leaves it.

    Args:
        num_microbatches: None: the job's.
        whole: as if there were no `memory.host_budget`.
    """
    sizes = [pack_bytes(job, stage) for stage in job.layout.chunks(rank)]
    if not any(sizes):
        return ()
    pool = pool_sizes(job_travel_plan(job, rank, num_microbatches), sizes)
    return pool if whole else within(pool, room_share(job, rank))


def room_share(job: Job, rank: int) -> float:
    """The part of what would travel that `memory.host_budget` has room for."""
    budget = budget_of(job.config.memory.host_budget, rank)
    if budget is None:
        return 1.0
    if budget.share is not None:
        return budget.share
    needed = total_bytes(rank_pool(job, rank, whole=True))
    assert budget.nbytes is not None
    return min(1.0, budget.nbytes / needed) if needed else 1.0
