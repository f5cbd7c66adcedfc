# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The plan: what every pipeline rank holds, what travels, how long a step may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from k2_megatron.offload.sizes import total_bytes
from k2_megatron.offload.slots import Fullest, most_on_device
from k2_megatron.parallel.layout import Stage
from k2_megatron.planner.activations import ChunkActivations, chunk_activations
from k2_megatron.planner.communication import Traffic, traffic
from k2_megatron.planner.estimate import Estimate, estimate
from k2_megatron.planner.job import Job
from k2_megatron.planner.newton_schulz import StageWork, newton_schulz_work
from k2_megatron.planner.offload import job_travel_plan, rank_pool, room_share
from k2_megatron.planner.optimizer_peak import masters_to_move, optimizer_peak
from k2_megatron.planner.parameters import count_parameters
from k2_megatron.planner.pass_peak import pass_peak
from k2_megatron.planner.states import States, rank_states, stage_kind


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """Device memory of the ranks of one pipeline stage, in bytes.

    Attributes:
        pipeline_rank: the stage.
        layers: its chunks in words.
        states: what stays between steps.
        optimizer_bytes: of the state, what is on the device.
        in_flight: micro-batches of each chunk when activations are most.
        present: of these, those of which what travels to the host is on the device.
        activations: bytes by tensor at that moment.
        workspace_bytes: of the moment with most memory, what is neither state nor activation.
        optimizer_is_peak: that moment lies in the optimizer's step, when activations are gone.
        host_bytes: pinned host memory.
    """

    pipeline_rank: int
    layers: str
    states: States
    optimizer_bytes: int
    in_flight: tuple[int, ...]
    present: tuple[float, ...]
    activations: dict[str, float]
    workspace_bytes: float
    optimizer_is_peak: bool
    host_bytes: float

    @property
    def activation_bytes(self) -> float:
        """Activations that are held when memory is fullest."""
        return 0.0 if self.optimizer_is_peak else self.held_bytes

    @property
    def held_bytes(self) -> float:
        """Activations when they are most."""
        return sum(self.activations.values())

    @property
    def static_bytes(self) -> int:
        """Parameters, gradients and optimizer state."""
        return self.states.parameter_bytes + self.states.gradient_bytes + self.optimizer_bytes

    @property
    def total_bytes(self) -> float:
        """The most that PyTorch allocates at once."""
        return self.static_bytes + self.activation_bytes + self.workspace_bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A job with all that follows from it.

    Attributes:
        ranks: by pipeline rank.
        full_at: router imbalance at which the fullest GPU is full: None where experts are not
            divided, or where nothing fits or everything does up to `expert_model_parallel_size`.
    """

    job: Job
    ranks: tuple[RankPlan, ...]
    traffic: tuple[Traffic, ...]
    muon: tuple[StageWork, ...]
    estimate: Estimate
    full_at: float | None

    @property
    def peak_bytes(self) -> float:
        """Of the fullest rank."""
        return peak_of(self.ranks)

    @property
    def usable_bytes(self) -> int:
        """Of the device, what PyTorch can have."""
        return self.job.usable_bytes

    @property
    def headroom_bytes(self) -> float:
        """What is left on the fullest rank; negative where it does not fit."""
        return self.usable_bytes - self.peak_bytes

    @property
    def fits(self) -> bool:
        """Every rank fits."""
        return self.headroom_bytes >= 0

    @property
    def host_bytes_per_node(self) -> float:
        """Pinned host memory of the fullest node."""
        return max(rank.host_bytes for rank in self.ranks) * min(
            self.job.gpus_per_node, self.job.num_gpus
        )


def peak_of(ranks: Sequence[RankPlan]) -> float:
    """Bytes of the fullest rank."""
    return max(rank.total_bytes for rank in ranks)


def make_plan(job: Job, *, place_matrices: bool = True) -> Plan:
    """Plan a job.

    Args:
        job: what to plan.
        place_matrices: place every matrix of Muon and find `full_at`; else both are left out,
            for they take the time.

    Raises:
        TopologyError: the number of GPUs does not fit the configuration.
    """
    ranks = plan_ranks(job)
    return finish_plan(job, ranks, place_matrices=place_matrices)


def plan_ranks(job: Job) -> tuple[RankPlan, ...]:
    """Memory alone: the part of a plan that decides whether it fits."""
    known: dict[Stage, ChunkActivations] = {}
    return tuple(rank_plan(job, rank, known) for rank in range(job.degrees.pipeline))


def finish_plan(job: Job, ranks: tuple[RankPlan, ...], *, place_matrices: bool) -> Plan:
    """The rest of a plan: communication and time."""
    states = [rank.states for rank in ranks]
    work = newton_schulz_work(job) if place_matrices else ()
    messages = traffic(job, states, work)
    plan = Plan(
        job=job,
        ranks=ranks,
        traffic=messages,
        muon=work,
        estimate=estimate(job, states, messages, work),
        full_at=None,
    )
    return plan if not place_matrices else with_full_at(plan)


def with_full_at(plan: Plan) -> Plan:
    """The plan with the router imbalance that it can bear."""
    return replace(plan, full_at=_full_at(plan))


def rank_plan(
    job: Job, pipeline_rank: int, known: dict[Stage, ChunkActivations] | None = None
) -> RankPlan:
    """Memory of one stage's ranks.

    Args:
        known: activations of kinds of stages, which is filled and spares counting them again.
    """
    stages = job.layout.chunks(pipeline_rank)
    states = rank_states(job, pipeline_rank)
    chunks = _activations(job, stages, {} if known is None else known)
    fullest = _fullest(job, pipeline_rank, chunks)
    held, flying = fullest.held, fullest.flying
    here = _leaving_here(job, pipeline_rank, flying, fullest.present)
    passes = pass_peak(job, stages, chunks, held, flying)
    update = optimizer_peak(job, pipeline_rank, states) + states.buffer_bytes
    update = max(update, masters_to_move(job, states))
    return RankPlan(
        pipeline_rank=pipeline_rank,
        layers=" | ".join(str(stage) for stage in stages),
        states=states,
        optimizer_bytes=states.device_bytes,
        in_flight=flying,
        present=fullest.present,
        activations=_by_tensor(chunks, flying, here),
        workspace_bytes=update if update > passes else passes - held,
        optimizer_is_peak=update > passes,
        host_bytes=states.host_bytes + total_bytes(rank_pool(job, pipeline_rank)),
    )


def _fullest(job: Job, pipeline_rank: int, chunks: Sequence[ChunkActivations]) -> Fullest:
    """The slot in which activations hold most."""
    share = room_share(job, pipeline_rank)
    return most_on_device(
        job_travel_plan(job, pipeline_rank),
        [chunk.total + (1 - share) * chunk.host for chunk in chunks],
        [share * chunk.host for chunk in chunks],
    )


def _leaving_here(
    job: Job, pipeline_rank: int, flying: Sequence[int], present: Sequence[float]
) -> list[float]:
    """Micro-batches of each chunk whose leaving part is on the device, in parts where it is."""
    if flying == present:
        return [float(count) for count in flying]
    share = room_share(job, pipeline_rank)
    return [share * here + (1 - share) * every for here, every in zip(present, flying, strict=True)]


def _activations(
    job: Job, stages: Sequence[Stage], known: dict[Stage, ChunkActivations]
) -> list[ChunkActivations]:
    kinds = list(stages)
    if not job.by_layer:  # else layers of one kind may have other policies
        kinds = [stage_kind(job.shape, stage) for stage in stages]
    for kind in kinds:
        if kind not in known:
            known[kind] = chunk_activations(job, kind)
    return [known[kind] for kind in kinds]


def _by_tensor(
    chunks: list[ChunkActivations], flying: Sequence[int], here: Sequence[float]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for chunk, *counts in zip(chunks, flying, here, strict=True):
        for sizes, count in zip((chunk.device, chunk.leaving), counts, strict=True):
            for name, size in sizes.items():
                if size * count:
                    found[name] = found.get(name, 0.0) + size * count
    return found


def _full_at(plan: Plan) -> float | None:
    """The imbalance at which the fullest rank has no headroom, by bisection."""
    job = plan.job
    largest = float(job.degrees.expert)
    if largest == 1 or not plan.fits:
        return None

    def fits(imbalance: float) -> bool:
        other = replace(job, imbalance=imbalance)
        known: dict[Stage, ChunkActivations] = {}
        return all(
            rank_total(other, rank, known) <= plan.usable_bytes
            for rank in range(job.degrees.pipeline)
        )

    def rank_total(other: Job, rank: int, known: dict[Stage, ChunkActivations]) -> float:
        """`total_bytes` without counting the states again."""
        old = plan.ranks[rank]
        stages = other.layout.chunks(rank)
        chunks = _activations(other, stages, known)
        here = _leaving_here(other, rank, old.in_flight, old.present)
        counts = zip(chunks, old.in_flight, here, strict=True)
        held = sum(chunk.total * count + chunk.host * some for chunk, count, some in counts)
        return old.static_bytes + pass_peak(other, stages, chunks, held, old.in_flight)

    if fits(largest):
        return None
    low, high = job.imbalance, largest
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything of a plan as numbers and texts; bytes are bytes, times seconds."""
    job, counts, found = plan.job, count_parameters(plan.job.config.model), plan.estimate
    return {
        "gpus": job.num_gpus,
        "gpu": job.gpu.name,
        "gpu_memory_bytes": job.gpu.memory_bytes,
        "usable_bytes": plan.usable_bytes,
        "fits": plan.fits,
        "peak_bytes": plan.peak_bytes,
        "headroom_bytes": plan.headroom_bytes,
        "imbalance": job.imbalance,
        "full_at_imbalance": plan.full_at,
        "host_bytes_per_node": plan.host_bytes_per_node,
        "parameters": {"total": counts.total, "active": counts.active},
        "degrees": vars(job.degrees),
        "num_microbatches": job.sizes.num_microbatches,
        "ranks": [
            {
                "pipeline_rank": rank.pipeline_rank,
                "layers": rank.layers,
                "parameters": rank.states.parameters,
                "parameter_bytes": rank.states.parameter_bytes,
                "gradient_bytes": rank.states.gradient_bytes,
                "optimizer_bytes": rank.optimizer_bytes,
                "held_activation_bytes": rank.held_bytes,
                "activation_bytes": rank.activation_bytes,
                "activations": rank.activations,
                "in_flight": list(rank.in_flight),
                "workspace_bytes": rank.workspace_bytes,
                "peak_in": "optimizer" if rank.optimizer_is_peak else "forward and backward",
                "host_bytes": rank.host_bytes,
                "total_bytes": rank.total_bytes,
            }
            for rank in plan.ranks
        ],
        "traffic": [vars(one) for one in plan.traffic],
        "newton_schulz": [vars(one) for one in plan.muon],
        "estimate": {
            **vars(found),
            "step_seconds": found.step_seconds,
            "tokens_per_second_per_gpu": found.tokens_per_gpu,
            "model_flops_per_second_per_gpu": found.flops_per_gpu,
        },
    }
