# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which matrices stay on this rank and which travel; agreed over the ranks of the stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from k2_megatron.parallel.muonclip.fragments import Fragment
from k2_megatron.parallel.muonclip.placement import (
    Holding,
    Placement,
    newton_schulz_cost,
    place,
)
from k2_megatron.parallel.muonclip.rules import Assignment, LogicalMatrix
from k2_megatron.parallel.muonclip.shards import OwnedShard
from k2_megatron.parallel.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Part:
    """A fragment and the shard of this rank that it lies in."""

    shard: OwnedShard
    fragment: Fragment

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Its elements, a view [runs, elements of a run] of a tensor that covers the shard."""
        one = self.fragment
        offset = values.storage_offset() + one.begin - self.shard.begin
        return values.as_strided((one.count, one.length), (one.step, 1), offset)


@dataclass(frozen=True, kw_only=True)
class Matrices:
    """The Muon work of this rank.

    Attributes:
        batches: matrices that lie whole in this rank's shards, each with its parts; the matrices of
            a batch have one shape.
        travelling: parts of all other matrices, in the order of `Holding.cut`.
        holdings: what every rank of the stage holds.
        placement: owners and rounds of what travels.
    """

    batches: list[list[tuple[LogicalMatrix, list[Part]]]]
    travelling: list[Part]
    holdings: list[Holding]
    placement: Placement


def agree_on_matrices(
    shards: Sequence[OwnedShard],
    assignment: Assignment,
    topology: Topology,
    *,
    batch_elements: int,
) -> Matrices:
    """Sort this rank's parts and place what travels. Collective over `tp_dp_cp`.

    Args:
        shards: what this rank owns.
        assignment: the rule of every matrix.
        topology: all ranks of a pipeline stage share its matrices.
        batch_elements: at most so many elements are orthogonalised at once, unless one matrix is
            larger; it bounds the memory of a step.
    """
    parts: dict[str, list[Part]] = defaultdict(list)
    for shard in shards:
        if shard.momentum is not None:
            for fragment in shard.fragments(assignment):
                parts[fragment.matrix].append(Part(shard=shard, fragment=fragment))
    staying = {
        name: found
        for name, found in parts.items()
        if not any(part.shard.has_copies for part in found)
        and sum(part.fragment.size for part in found) == _size(assignment.matrices[name])
    }
    travelling = [part for name, found in parts.items() if name not in staying for part in found]
    own = Holding(
        tensor_rank=topology.tp.rank,
        expert_tensor_rank=topology.etp.rank,
        fixed_cost=sum(newton_schulz_cost(assignment.matrices[name]) for name in staying),
        fixed_matrices=len(staying),
        cut=tuple(part.fragment for part in travelling),
    )
    group = topology.tp_dp_cp.group
    holdings: list[Holding] = [own] * group.size()
    dist.all_gather_object(holdings, own, group=group)
    return Matrices(
        batches=_batches(staying, assignment, batch_elements),
        travelling=travelling,
        holdings=holdings,
        placement=place(holdings, assignment.matrices, round_elements=batch_elements),
    )


def _size(matrix: LogicalMatrix) -> int:
    return matrix.rows * matrix.cols


def _batches(
    staying: dict[str, list[Part]], assignment: Assignment, batch_elements: int
) -> list[list[tuple[LogicalMatrix, list[Part]]]]:
    """Matrices of one shape together, no more than `batch_elements` at once."""
    by_shape: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name in staying:
        matrix = assignment.matrices[name]
        by_shape[matrix.rows, matrix.cols].append(name)
    batches = []
    for (rows, cols), names in sorted(by_shape.items()):
        count = max(1, batch_elements // (rows * cols))
        for begin in range(0, len(names), count):
            chosen = names[begin : begin + count]
            batches.append([(assignment.matrices[name], staying[name]) for name in chosen])
    return batches
