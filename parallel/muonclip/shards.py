# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""This rank's parameters as MuonClip owns them: fp32 master, moments, and what lies in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel

from k2_megatron.offload.sizes import on_host, shard_tensors, tensors_on_host
from k2_megatron.offload.state import HostState
from k2_megatron.parallel.flat_shards import FlatShard, flat_shards
from k2_megatron.parallel.geometry import ParameterGeometry
from k2_megatron.parallel.muonclip.fragments import Fragment, fragments
from k2_megatron.parallel.muonclip.rules import Assignment
from k2_megatron.parallel.topology import Topology


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
        moments: both of AdamW, fp32 [n], where they are in host memory; else AdamW makes them.
        on_host: the state is in host memory, but for a master that is the weights.
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
    moments: tuple[torch.Tensor, ...]
    on_host: bool
    counted: bool
    has_copies: bool

    @property
    def parameter_view(self) -> torch.Tensor | None:
        """Where the rounded master goes; None where the master is the parameter."""
        return None if self.master is self.weights else self.weights

    def round_master(self) -> None:
        """Write the master into the parameter, where they are two tensors."""
        self.round_columns(slice(None), self.master[None])

    def round_columns(self, columns: slice, master: torch.Tensor) -> None:
        """The same with some elements of the master, [1, n], where they are on the device."""
        if self.parameter_view is not None:
            self.parameter_view[None, columns].copy_(master)

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
    host_fraction: float,
) -> tuple[list[OwnedShard], HostState]:
    """Allocate master weights and momentum for what this rank owns, in buffer order.

    Args:
        chunks: this rank's model chunks.
        parameters: their parameters with their entries in the geometry table.
        assignment: the rule of every canonical matrix.
        topology: where this rank stands.
        momentum_dtype: of Muon's momentum.
        host_fraction: of the state, by bytes, in host memory.

    Returns:
        The shards, and the host memory with the state of some of them.
    """
    entries = {id(parameter): entry for parameter, entry in parameters}
    flats = list(flat_shards(chunks))
    found = [entries[id(flat.parameter)] for flat in flats]
    momenta = [momentum_dtype if _takes_muon(entry, assignment) else None for entry in found]
    sizes = [
        shard_tensors(
            flat.gradient.numel(),
            master=flat.weights.dtype != torch.float32,
            momentum=None if momentum is None else momentum.itemsize,
        )
        for flat, momentum in zip(flats, momenta, strict=True)
    ]
    away = on_host(sizes, host_fraction)
    host = HostState(tensors_on_host(sizes, away), flats[0].gradient.device)
    shards = [
        _own(flat, entry, topology, momentum, host if is_away else None)
        for flat, entry, momentum, is_away in zip(flats, found, momenta, away, strict=True)
    ]
    return shards, host


def _takes_muon(entry: ParameterGeometry, assignment: Assignment) -> bool:
    muon = {assignment.uses_muon(piece.key) for piece in entry.pieces}
    assert len(muon) == 1, f"{entry.name} holds matrices of two update rules"
    return muon.pop()


def _own(
    flat: FlatShard,
    entry: ParameterGeometry,
    topology: Topology,
    momentum_dtype: torch.dtype | None,
    host: HostState | None,
) -> OwnedShard:
    """One shard.

    Args:
        flat: it in the bucket.
        entry: of its parameter.
        topology: where this rank stands.
        momentum_dtype: of Muon's; None where it takes AdamW.
        host: where its state is, None for the device.
    """
    axis = topology.etp if entry.is_expert else topology.tp
    has_copies = axis.size > 1 and not entry.is_tensor_sharded
    count = flat.gradient.numel()
    master, momentum = flat.weights, None
    moments: tuple[torch.Tensor, ...] = ()
    if flat.weights.dtype != torch.float32:
        master = flat.weights.float()
        if host is not None:
            master = host.place(count, torch.float32).copy_(master)
    if momentum_dtype is None:
        if host is not None:
            moments = tuple(host.place(count, torch.float32) for _ in range(2))
    elif host is None:
        momentum = torch.zeros_like(flat.gradient, dtype=momentum_dtype)
    else:
        momentum = host.place(count, momentum_dtype)
    return OwnedShard(
        parameter=flat.parameter,
        entry=entry,
        begin=flat.begin,
        gradient=flat.gradient,
        weights=flat.weights,
        master=master,
        momentum=momentum,
        moments=moments,
        on_host=host is not None,
        counted=not (has_copies and axis.rank > 0) and not getattr(flat.parameter, "shared", False),
        has_copies=has_copies,
    )
