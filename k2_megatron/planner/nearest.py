# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where a pipeline does not fit into memory: the nearest ones that do, on the same GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from k2_megatron.config.resolve import fitting_world_sizes, resolve
from k2_megatron.config.rules_parallel import refuses_layout
from k2_megatron.planner.hardware import GIB
from k2_megatron.planner.job import Job
from k2_megatron.planner.place import within_memory
from k2_megatron.planner.plan import Plan, peak_of, plan_ranks

_VIRTUAL = (1, 2, 4, 8)
_SHOWN = 2


def nearest_text(plan: Plan) -> str:
    """One line: PP x VPP that would fit with everything else as it is, or that none does."""
    found = list(islice(_fitting(plan.job), _SHOWN))
    if not found:
        return (
            f"no other PP x VPP fits on {plan.job.num_gpus} {plan.job.gpu.name} with the rest of "
            "the configuration as it is"
        )
    names = " or ".join(
        f"PP {one.degrees.pipeline} x VPP {one.degrees.virtual} ({peak / GIB:.1f} GiB)"
        for one, peak in found
    )
    return f"nearest that fits with the rest as it is: {names}"


def _fitting(job: Job) -> Iterator[tuple[Job, float]]:
    """Jobs that fit with their peak bytes, the nearest pipeline first."""
    for other in sorted(_candidates(job), key=lambda one: _distance(job, one)):
        placed = within_memory(other)
        peak = peak_of(plan_ranks(placed))
        if peak <= job.usable_bytes:
            yield placed, peak


def _distance(job: Job, other: Job) -> tuple[float, float, int]:
    """In doublings of stages a token passes, then of ranks."""
    one, two = job.degrees, other.degrees
    ranks = abs(math.log2(two.pipeline / one.pipeline))
    chunks = abs(math.log2(two.virtual / one.virtual))
    return ranks + chunks, ranks, two.pipeline


def _candidates(job: Job) -> Iterator[Job]:
    """The job in every other pipeline that the rules allow on its GPUs."""
    for pipeline in range(1, min(job.num_gpus, job.shape.num_layers) + 1):
        for virtual in _VIRTUAL:
            same = (pipeline, virtual) == (job.degrees.pipeline, job.degrees.virtual)
            if job.num_gpus % pipeline or same:
                continue
            parallel = replace(
                job.config.parallel,
                pipeline_model_parallel_size=pipeline,
                virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
                pipeline_model_parallel_layout=None,
            )
            config = resolve(replace(job.config, parallel=parallel))
            if not refuses_layout(config) and job.num_gpus in fitting_world_sizes(config):
                yield replace(job, config=config)
