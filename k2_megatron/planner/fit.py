# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Search layouts and memory presets that fit a number of GPUs, the fastest by estimate first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from k2_megatron.config.config import Config
from k2_megatron.config.memory import MemoryConfig
from k2_megatron.config.parallel import ParallelConfig
from k2_megatron.config.resolve import fitting_world_sizes, resolve
from k2_megatron.config.rules_parallel import refuses_layout
from k2_megatron.memory.policy import PRESETS, on_host
from k2_megatron.planner.hardware import ESTIMATE_ERROR, GPUS_PER_NODE, Gpu
from k2_megatron.planner.job import Job
from k2_megatron.planner.offload import something_travels
from k2_megatron.planner.parameters import count_parameters
from k2_megatron.planner.plan import (
    Plan,
    finish_plan,
    make_plan,
    peak_of,
    plan_ranks,
    with_full_at,
)
from k2_megatron.planner.text import gib, table

_SHOWN = 12
_VIRTUAL = (None, 2, 4)
_TENSOR = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout with a memory preset."""

    plan: Plan
    preset: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found.

    Attributes:
        fitting: the fastest first.
        nearest: where nothing fits, the candidate with the least memory.
        num_tried: candidates.
    """

    num_gpus: int
    gpu: Gpu
    fitting: tuple[Candidate, ...]
    nearest: Candidate | None
    num_tried: int


def search(
    config: Config,
    num_gpus: int,
    *,
    gpu: Gpu,
    gpus_per_node: int = GPUS_PER_NODE,
    imbalance: float = 1.0,
) -> Found:
    """Try every layout that the rules allow, with TP up to 8 and VPP 1, 2 or 4, in every preset.

    Tensor parallelism stays within a node. Batch, sequence and model are the configuration's; so
    are context parallelism and overlap of gradients. The expert all-to-all is overlapped where the
    engine can.
    """
    fitting: list[Candidate] = []
    nearest: tuple[float, Job, str] | None = None
    hopeless: tuple[float, Job, str] | None = None
    tried = 0
    for layout in _layouts(config, num_gpus, gpus_per_node):
        for preset, policies in PRESETS.items():
            job = Job(
                config=layout,
                num_gpus=num_gpus,
                gpu=gpu,
                gpus_per_node=gpus_per_node,
                policies=policies,
                imbalance=imbalance,
            )
            if on_host([policies]) and not something_travels(job):
                continue  # the preset without host memory is the same
            tried += 1
            least = _least_bytes(job)
            if least > gpu.memory_bytes:  # not worth the counting
                if hopeless is None or least <= hopeless[0]:
                    hopeless = least, job, preset
                continue
            ranks = plan_ranks(job)
            peak = peak_of(ranks)
            if peak <= job.usable_bytes:
                plan = finish_plan(job, ranks, place_matrices=False)
                fitting.append(Candidate(plan=plan, preset=preset))
            elif nearest is None or peak < nearest[0]:
                nearest = peak, job, preset
    fitting.sort(key=lambda one: one.plan.estimate.step_seconds)
    left = None if fitting else nearest or hopeless
    return Found(
        num_gpus=num_gpus,
        gpu=gpu,
        fitting=_best_with_full_at(fitting),
        nearest=left and Candidate(plan=make_plan(left[1], place_matrices=False), preset=left[2]),
        num_tried=tried,
    )


def _least_bytes(job: Job) -> float:
    """Less than what the fullest rank must hold: its share of weights and gradients of experts."""
    counts, degrees = count_parameters(job.config.model), job.degrees
    ways = degrees.pipeline * degrees.expert * degrees.expert_tensor
    return counts.routed_experts * (job.width + 4) / ways


def _best_with_full_at(candidates: list[Candidate]) -> tuple[Candidate, ...]:
    """All candidates; those that will be shown know how much imbalance they bear."""
    shown = [replace(one, plan=with_full_at(one.plan)) for one in candidates[:_SHOWN]]
    return (*shown, *candidates[_SHOWN:])


def _layouts(config: Config, num_gpus: int, gpus_per_node: int) -> Iterator[Config]:
    """Every configuration that the rules allow on this number of GPUs."""
    experts = config.model.num_experts
    for tensor in _TENSOR:
        if tensor > gpus_per_node:
            continue
        for pipeline in _divisors(num_gpus):
            if pipeline > config.model.num_layers:
                continue
            for virtual in _VIRTUAL if pipeline > 1 else (None,):
                for expert in _divisors(num_gpus // pipeline):
                    if experts % expert == 0:
                        yield from _checked(config, num_gpus, tensor, pipeline, virtual, expert)


def _checked(
    config: Config, num_gpus: int, tensor: int, pipeline: int, virtual: int | None, expert: int
) -> Iterator[Config]:
    """The configuration in one layout, if it is allowed."""
    old: ParallelConfig = config.parallel
    can_overlap = expert > 1 and (pipeline == 1 or virtual is not None)
    parallel = replace(
        old,
        tensor_model_parallel_size=tensor,
        sequence_parallel=None,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=virtual,
        pipeline_model_parallel_layout=None,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=None,
        overlap_moe_expert_parallel_comm=can_overlap,
        delay_wgrad_compute=old.delay_wgrad_compute and can_overlap,
    )
    # Each preset is tried as it is; changes to one may name stages of another layout.
    changed = resolve(replace(config, parallel=parallel, memory=MemoryConfig()))
    refused = refuses_layout(changed)
    if refused and can_overlap:
        changed = replace(
            changed,
            parallel=replace(
                changed.parallel,
                overlap_moe_expert_parallel_comm=False,
                delay_wgrad_compute=False,
            ),
        )
        refused = refuses_layout(changed)
    if not refused and num_gpus in fitting_world_sizes(changed):
        yield changed


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def fit_text(found: Found) -> str:
    """The fastest candidates that fit as a table; where none fits, the nearest."""
    head = f"{found.num_tried} candidates on {found.num_gpus} x {found.gpu.name}: "
    if not found.fitting:
        text = head + "none fits"
        if found.nearest is not None:
            text += (
                f"; the nearest needs {gib(found.nearest.plan.peak_bytes)} of "
                f"{gib(found.nearest.plan.usable_bytes)} GiB:\n\n" + _rows([found.nearest])
            )
        return text
    text = head + f"{len(found.fitting)} fit. The fastest:\n\n{_rows(found.fitting[:_SHOWN])}"
    return text + f"\n\nTimes are estimates, good to some {100 * ESTIMATE_ERROR:.0f} %."


def _rows(chosen: Sequence[Candidate]) -> str:
    titles = ("peak GiB", "full at", "host/node", "bubble", "step s", "tok/s/GPU")
    rows: list[tuple[str, ...]] = [("TP", "PP", "VPP", "EP", "DP", "overlap", "memory", *titles)]
    for one in chosen:
        plan, degrees = one.plan, one.plan.job.degrees
        overlap = plan.job.config.parallel.overlap_moe_expert_parallel_comm
        rows.append(
            (
                str(degrees.tensor),
                str(degrees.pipeline),
                str(degrees.virtual),
                str(degrees.expert),
                str(degrees.data),
                "yes" if overlap else "no",
                one.preset,
                gib(plan.peak_bytes),
                "-" if plan.full_at is None else f"{plan.full_at:.2f}",
                gib(plan.host_bytes_per_node),
                f"{100 * plan.estimate.bubble:.1f} %",
                f"{plan.estimate.step_seconds:.3g}",
                f"{plan.estimate.tokens_per_gpu:.0f}",
            )
        )
    return table(rows, left=0)


def fit_json(found: Found) -> dict[str, Any]:
    """All that fits, the fastest first."""
    return {
        "gpus": found.num_gpus,
        "gpu": found.gpu.name,
        "num_tried": found.num_tried,
        "fitting": [_as_json(one) for one in found.fitting],
        "nearest": None if found.nearest is None else _as_json(found.nearest),
    }


def _as_json(one: Candidate) -> dict[str, Any]:
    plan = one.plan
    return {
        **vars(plan.job.degrees),
        "memory_preset": one.preset,
        "overlap": plan.job.config.parallel.overlap_moe_expert_parallel_comm,
        "peak_bytes": plan.peak_bytes,
        "host_bytes_per_node": plan.host_bytes_per_node,
        "full_at_imbalance": plan.full_at,
        "step_seconds": plan.estimate.step_seconds,
        "tokens_per_second_per_gpu": plan.estimate.tokens_per_gpu,
        "bubble": plan.estimate.bubble,
    }
