# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Who orthogonalises what under a plan, as MuonClip itself would place it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from k2_megatron.parallel.buckets import shares
from k2_megatron.parallel.layout import Stage
from k2_megatron.parallel.muonclip.fragments import Fragment, fragments
from k2_megatron.parallel.muonclip.placement import Holding, Placement, newton_schulz_cost, place
from k2_megatron.parallel.muonclip.rules import Assignment
from k2_megatron.planner.job import DTYPE_BYTES, Job
from k2_megatron.planner.states import chunk_buckets, chunk_entries
from k2_megatron.planner.update_rules import assignment_of

# As parallel/muonclip/optimizer.py, which needs torch; a test compares them.
BATCH_ELEMENTS = 360_000_000


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """Newton-Schulz work of one pipeline stage in a step.

    Attributes:
        pipeline_rank: the stage.
        num_matrices: logical matrices, each orthogonalised once.
        flops: of the plain form, over the ranks of the stage.
        longest: of the rank that has most.
        balance: longest over mean.
        wire_bytes: that travel in a step over all ranks of the stage, there and back.
        cut_matrices: matrices that travel.
    """

    pipeline_rank: int
    num_matrices: int
    flops: float
    longest: float
    balance: float
    wire_bytes: int
    cut_matrices: int


def stage_holdings(job: Job, pipeline_rank: int, assignment: Assignment) -> list[Holding]:
    """What each rank of a stage holds: whole matrices, and parts of cut ones."""
    degrees = job.degrees
    holdings = []
    for rank in range(degrees.stage):
        found: list[Fragment] = []
        copied: set[str] = set()
        for chunk, stage in enumerate(job.layout.chunks(pipeline_rank)):
            held = _chunk_fragments(job, stage, pipeline_rank, chunk, rank, assignment)
            for fragment, has_copies in held:
                found.append(fragment)
                if has_copies:
                    copied.add(fragment.matrix)
        sizes: dict[str, int] = defaultdict(int)
        for fragment in found:
            sizes[fragment.matrix] += fragment.size
        whole = {
            name
            for name, size in sizes.items()
            if name not in copied
            and size == assignment.matrices[name].rows * assignment.matrices[name].cols
        }
        holdings.append(
            Holding(
                tensor_rank=rank % degrees.tensor,
                expert_tensor_rank=rank % degrees.expert_tensor,
                fixed_cost=sum(newton_schulz_cost(assignment.matrices[name]) for name in whole),
                fixed_matrices=len(whole),
                cut=tuple(fragment for fragment in found if fragment.matrix not in whole),
            )
        )
    return holdings


def _chunk_fragments(
    job: Job, stage: Stage, pipeline_rank: int, chunk: int, rank: int, assignment: Assignment
) -> list[tuple[Fragment, bool]]:
    degrees = job.degrees
    entries = chunk_entries(job, stage, data_rank=rank)
    dense, experts = chunk_buckets(job, entries, pipeline_rank=pipeline_rank, chunk=chunk)
    data_index = rank // degrees.tensor
    expert_index = rank // (degrees.expert * degrees.expert_tensor)
    found = []
    for buckets, ways, index in (
        (dense, degrees.data_context, data_index),
        (experts, degrees.expert_data, expert_index),
    ):
        for bucket in buckets:
            for share in shares(bucket, ways, index):
                if not assignment.uses_muon(share.entry.pieces[0].key):
                    continue
                size = degrees.expert_tensor if share.entry.is_expert else degrees.tensor
                copies = size > 1 and not share.entry.is_tensor_sharded
                found += [
                    (fragment, copies)
                    for fragment in fragments(share.entry, share.begin, share.end, assignment)
                ]
    return found


def stage_placement(job: Job, pipeline_rank: int) -> Placement:
    """Owners and rounds of one stage."""
    prefixes: set[str] = set()
    for stage in job.layout.chunks(pipeline_rank):
        prefixes |= {f"layers.{layer}" for layer in stage.layers}
        prefixes |= {f"mtp.{index}" for index in stage.mtp_layers}
    assignment = assignment_of(
        job.config,
        lambda key: ".".join(key.split(".", 2)[:2]) in prefixes or "." not in key,
    )
    holdings = stage_holdings(job, pipeline_rank, assignment)
    return place(holdings, assignment.matrices, round_elements=BATCH_ELEMENTS)


def newton_schulz_work(job: Job) -> tuple[StageWork, ...]:
    """The work of every stage; empty without Muon. Stages of the same layers are placed once."""
    if job.config.optimizer.type != "muonclip":
        return ()
    steps = job.config.optimizer.muon_ns_steps
    options = job.config.optimizer
    wire = DTYPE_BYTES.get(options.muon_wire_dtype or "", job.width)
    known: dict[object, Placement] = {}
    found = []
    for rank in range(job.degrees.pipeline):
        kind = _kind(job, rank)
        if kind not in known:
            known[kind] = stage_placement(job, rank)
        placement = known[kind]
        found.append(
            StageWork(
                pipeline_rank=rank,
                num_matrices=placement.num_matrices,
                flops=2.0 * steps * sum(placement.loads),
                longest=2.0 * steps * max(placement.loads),
                balance=placement.balance,
                wire_bytes=wire * (placement.data_elements + placement.tensor_elements),
                cut_matrices=sum(len(chosen) for chosen in placement.rounds),
            )
        )
    return tuple(found)


def _kind(job: Job, rank: int) -> object:
    """What decides a stage's placement: its chunks but for the numbers of their layers."""
    limited = job.config.parallel.overlap_grad_reduce and rank == 0
    return limited, tuple(
        (
            stage.embedding,
            stage.loss,
            len(stage.mtp_layers),
            tuple(job.shape.is_dense(layer) for layer in stage.layers),
        )
        for stage in job.layout.chunks(rank)
    )
