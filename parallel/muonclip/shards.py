# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""This rank's parameters as MuonClip owns them: fp32 master, momentum, and what lies in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from k2_megatron.parallel.flat_shards import FlatShard, flat_shards
from k2_megatron.parallel.geometry import ParameterGeometry
from k2_megatron.parallel.muonclip.fragments import Fragment, fragments
from k2_megatron.parallel.muonclip.rules import Assignment
from k2_megatron.parallel.topology import Topology
from megatron.core.distributed import DistributedDataParallel


@dataclass(frozen=True, kw_only=True)
class OwnedShard:
    """The owned part of one parameter with its optimizer state.

    Attributes:
        parameter: the model parameter.
        entry: it in the geometry table.
        begin: first owned element of the flattened parameter.
        gradient: fp32 [n], a view into the gradient bucket.
        weights: [n] in the model's dtype, a view into the parameter bucket.
        master: fp32 [n]; the weights themselves where the model is fp32.
        momentum: [n] where the parameter takes Muon, else None.
        counted: this rank counts it in the gradient norm: not a copy, nor shared between stages.
        has_copies: other tensor ranks hold the same elements.
    """

    parameter: torch.nn.Parameter
    entry: ParameterGeometry
    begin: int
    gradient: torch.Tensor
    weights: torch.Tensor
    master: torch.Tensor
    momentum: torch.Tensor | None
    counted: bool
    has_copies: bool

    @property
    def parameter_view(self) -> torch.Tensor | None:
        """Where the rounded master goes; None where the master is the parameter."""
        return None if self.master is self.weights else self.weights

    def round_master(self) -> None:
        """Write the master into the parameter, where they are two tensors."""
        if self.parameter_view is not None:
            self.parameter_view.copy_(self.master)

    def fragments(self, assignment: Assignment) -> list[Fragment]:
        """The parts of logical matrices in it."""
        end = self.begin + self.gradient.numel()
        return list(fragments(self.entry, self.begin, end, assignment))


def own_shards(
    chunks: Sequence[DistributedDataParallel],
    parameters: Iterable[tuple[torch.nn.Parameter, ParameterGeometry]],
    assignment: Assignment,
    topology: Topology,
    *,
    momentum_dtype: torch.dtype,
) -> list[OwnedShard]:
    """Allocate master weights and momentum for what this rank owns, in buffer order."""
    entries = {id(parameter): entry for parameter, entry in parameters}
    return [
        _own(flat, entries[id(flat.parameter)], assignment, topology, momentum_dtype)
        for flat in flat_shards(chunks)
    ]


def _own(
    flat: FlatShard,
    entry: ParameterGeometry,
    assignment: Assignment,
    topology: Topology,
    momentum_dtype: torch.dtype,
) -> OwnedShard:
    axis = topology.etp if entry.is_expert else topology.tp
    has_copies = axis.size > 1 and not entry.is_tensor_sharded
    muon = {assignment.uses_muon(piece.key) for piece in entry.pieces}
    assert len(muon) == 1, f"{entry.name} holds matrices of two update rules"
    in_fp32 = flat.weights.dtype == torch.float32
    return OwnedShard(
        parameter=flat.parameter,
        entry=entry,
        begin=flat.begin,
        gradient=flat.gradient,
        weights=flat.weights,
        master=flat.weights if in_fp32 else flat.weights.float(),
        momentum=torch.zeros_like(flat.gradient, dtype=momentum_dtype) if muon.pop() else None,
        counted=not (has_copies and axis.rank > 0) and not getattr(flat.parameter, "shared", False),
        has_copies=has_copies,
    )
