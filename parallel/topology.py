# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where this process stands: parallel sizes, its rank on every axis, and the process groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of the process mesh as this process sees it.

    Attributes:
        size: number of ranks along the axis.
        rank: this process's place on it.
        group: process group of the ranks that differ from this one in this axis alone.
    """

    size: int
    rank: int
    group: dist.ProcessGroup


@dataclass(frozen=True, kw_only=True)
class Topology:
    """The process mesh: dense layers see tp x cp x dp x pp, expert layers etp x ep x edp x pp.

    Attributes:
        rank: global rank of this process.
        world_size: number of processes.
        virtual_size: model chunks a pipeline rank, 1 without interleaving.
        tp: tensor parallel. cp: context parallel. dp: data parallel. pp: pipeline parallel.
        dp_cp: data x context parallel, over which dense gradients are reduced and sharded.
        tp_dp_cp: all ranks that hold a part of one pipeline stage.
        etp: expert tensor parallel. ep: expert parallel. edp: expert data parallel, over which
            expert gradients are reduced and sharded.
    """

    rank: int
    world_size: int
    virtual_size: int
    tp: Axis
    cp: Axis
    dp: Axis
    pp: Axis
    dp_cp: Axis
    tp_dp_cp: Axis
    etp: Axis
    ep: Axis
    edp: Axis

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.pp.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank computes the loss."""
        return self.pp.rank == self.pp.size - 1

    def __str__(self) -> str:
        names = ("tp", "cp", "dp", "pp", "etp", "ep", "edp")
        parts = [f"{name}{getattr(self, name).size}" for name in names]
        if self.virtual_size > 1:
            parts.insert(4, f"vpp{self.virtual_size}")
        return " ".join(parts)
