# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The layout of a configuration that names none: by the planner's times, and within its memory.

The trainer and `plan` both come here, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from k2_megatron.config.config import Config
from k2_megatron.errors import ConfigError
from k2_megatron.parallel.buckets import buffers
from k2_megatron.parallel.layout import PipelineLayout, Stage
from k2_megatron.parallel.layout_request import Memory, Needs, Request
from k2_megatron.parallel.layout_search import place_layers
from k2_megatron.planner.activations import chunk_activations
from k2_megatron.planner.job import Job, job_of
from k2_megatron.planner.plan import RankPlan, peak_of, plan_ranks
from k2_megatron.planner.schedule import pipeline_seconds
from k2_megatron.planner.stage_times import stage_times
from k2_megatron.planner.states import (
    Owned,
    chunk_entries,
    is_matrix_of_muon,
    optimizer_bytes,
    stage_kind,
)

# Of each rank, where layouts are compared: 1024 of K2's at PP 16. Their true number depends on the
# number of GPUs.
_MICRO_BATCHES = 64


@lru_cache(maxsize=256)
def placed_layout(config: Config) -> PipelineLayout:
    """The fastest layout by the planner's costs, whatever the memory.

    It depends on the configuration alone, not on the number of GPUs or their kind: the costs are
    those of an H100, and only their ratios matter.

    Raises:
        ConfigError: too many stages for the layers.
        TopologyError: no number of GPUs fits the configuration.
    """
    return place_layers(request_of(job_of(config)))


def replayed_step_time(
    pipeline: int, virtual: int, overlap: bool
) -> Callable[[Sequence[float]], float]:
    """The time of a step, of what its stages take with a micro-batch, a third of it in forward."""
    shape = pipeline, virtual, _MICRO_BATCHES * pipeline, overlap

    def step_time(times: Sequence[float]) -> float:
        forward, backward = [one / 3 for one in times], [2 * one / 3 for one in times]
        return pipeline_seconds(*shape, forward, backward)[0]

    return step_time


def request_of(job: Job, memory: Memory | None = None) -> Request:
    """The job's pipeline with the planner's times."""
    pipeline, virtual = job.degrees.pipeline, job.degrees.virtual
    overlap = job.config.parallel.overlap_moe_expert_parallel_comm
    return Request(
        pipeline_size=pipeline,
        virtual_size=virtual,
        step_time=replayed_step_time(pipeline, virtual, overlap),
        times=_needs(job, lambda stage: stage_times(job, stage).total),
        num_mtp_layers=job.shape.num_mtp_layers,
        memory=memory,
    )


def within_memory(job: Job) -> Job:
    """The job as it is, or with another layout if its own does not fit and that one does.

    The other layout stands in the job's configuration, as if it had been written there. One that
    the configuration names is kept.

    Raises:
        TopologyError: the number of GPUs does not fit the configuration.
    """
    parallel = job.config.parallel
    if job.degrees.pipeline == 1 or parallel.pipeline_model_parallel_layout is not None:
        return job
    ranks = plan_ranks(job)
    whole = sum(rank.total_bytes for rank in ranks)
    if _fits(job, ranks) or whole > job.usable_bytes * len(ranks):
        return job
    try:
        layout = place_layers(request_of(job, _memory(job, ranks)))
    except ConfigError:
        return job
    written = replace(parallel, pipeline_model_parallel_layout=layout.to_text())
    other = replace(job, config=replace(job.config, parallel=written))
    return other if _fits(other, plan_ranks(other)) else job


def _fits(job: Job, ranks: tuple[RankPlan, ...]) -> bool:
    return peak_of(ranks) <= job.usable_bytes


def _memory(job: Job, ranks: tuple[RankPlan, ...]) -> Memory:
    """What stages need, and what each rank has for them beside its transients.

    The transients are those of the layout that does not fit, the micro-batches in flight too: they
    depend on the layout a little, so that what is found is planned once more.
    """
    pipeline = job.degrees.pipeline
    states = _needs(job, lambda stage: _state_bytes(job, stage))
    activations = _needs(job, lambda stage: chunk_activations(job, stage).total)
    in_flight = tuple(
        ranks[index % pipeline].in_flight[index // pipeline]
        for index in range(len(job.layout.stages))
    )
    whole = Memory(
        states=states, activations=activations, in_flight=in_flight, limits=(0.0,) * pipeline
    )
    counts = [len(stage.layers) for stage in job.layout.stages]
    held = whole.excess_of_ranks(counts)
    limits = (
        job.usable_bytes - max(0.0, rank.total_bytes - size)
        for rank, size in zip(ranks, held, strict=True)
    )
    return replace(whole, limits=tuple(limits))


def _needs(job: Job, measure: Callable[[Stage], float]) -> Needs:
    """A measure of a stage, taken of each part of the model by itself."""
    shape = job.shape
    head = Stage(loss=True, mtp_layers=tuple(range(shape.num_mtp_layers)))
    return Needs(
        layers=tuple(measure(Stage(layers=(layer,))) for layer in range(shape.num_layers)),
        embedding=measure(Stage(embedding=True)),
        head=measure(head),
    )


def _state_bytes(job: Job, stage: Stage) -> float:
    """Weights, gradients, and the mean data-parallel rank's optimizer state."""
    entries = chunk_entries(job, stage_kind(job.shape, stage))
    dense, experts = buffers(entries, expert_parallel=job.degrees.expert > 1)
    on_device = 1.0 - job.config.optimizer.optimizer_offload_fraction
    total = 0.0
    for group, ways in ((dense, job.degrees.data_context), (experts, job.degrees.expert_data)):
        for entry in group:
            size = entry.shape[0] * entry.shape[1]
            owned = Owned(muon=size) if is_matrix_of_muon(job, entry) else Owned(adamw=size)
            total += size * (job.width + 4) + on_device * optimizer_bytes(job, owned) / ways
    return total
