# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What MuonClip says of itself: the table at the start, the metrics of a step."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist
from k2_megatron.parallel.muonclip.placement import Placement
from k2_megatron.parallel.muonclip.rules import KINDS, Assignment, LogicalMatrix
from k2_megatron.parallel.topology import Topology


class Report:
    """Counts of one run's plan and the statistics of its steps.

    Attributes:
        placement: the plan of this pipeline stage.
        wire_bytes: bytes that travel in a step for Newton-Schulz, over all ranks of the job; first
            for matrices that shards alone cut, then for those that tensor parallelism cuts.
        num_orthogonalised: matrices that this rank has orthogonalised since the start.
    """

    def __init__(
        self,
        placement: Placement,
        assignment: Assignment,
        wire_dtype: torch.dtype,
        topology: Topology,
        device: torch.device,
    ) -> None:
        """Add up the stages. Collective over all processes."""
        self.placement = placement
        self.num_orthogonalised = 0
        travel = torch.tensor(
            [placement.data_elements, placement.tensor_elements], dtype=torch.int64, device=device
        )
        travel *= wire_dtype.itemsize
        dist.all_reduce(travel, group=topology.pp.group)
        self.wire_bytes: tuple[int, int] = tuple(travel.tolist())
        self._squares = torch.zeros(len(KINDS), dtype=torch.float64, device=device)
        counts = Counter[str]()
        for matrix in assignment.matrices.values():
            counts[matrix.kind] += matrix.rows * matrix.cols
        self._counts = counts

    def add(self, matrices: Sequence[LogicalMatrix], update: torch.Tensor) -> None:
        """Count orthogonalised matrices [n, rows, cols] of one batch."""
        self.num_orthogonalised += len(matrices)
        norms = torch.linalg.vector_norm(update, dim=(1, 2), dtype=torch.float32)
        scales = torch.tensor([matrix.scale for matrix in matrices], device=update.device)
        kinds = torch.tensor([KINDS.index(m.kind) for m in matrices], device=update.device)
        self._squares.index_add_(0, kinds, (norms * scales).double().square())

    def metrics(
        self, max_logits: torch.Tensor | None, gammas: torch.Tensor | None
    ) -> dict[str, float]:
        """The statistics of the step by TensorBoard tag. Collective over all processes."""
        squares, self._squares = self._squares, torch.zeros_like(self._squares)
        dist.all_reduce(squares)
        found = {"muon/gather_bytes": float(sum(self.wire_bytes))}
        for kind, total in zip(KINDS, squares.tolist(), strict=True):
            if self._counts[kind]:
                found[f"muon/update_rms/{kind}"] = (total / self._counts[kind]) ** 0.5
        if max_logits is not None and gammas is not None:
            found |= logit_metrics(max_logits, gammas)
        return found


def logit_metrics(max_logits: torch.Tensor, gammas: torch.Tensor) -> dict[str, float]:
    """The largest logits of the model and of each layer, and what QK-Clip makes of them."""
    by_layer = max_logits.amax(dim=1).tolist()
    found = {f"qk_clip/max_logit/layer_{i:03d}": value for i, value in enumerate(by_layer)}
    return found | {
        "qk_clip/max_logit": max(by_layer),
        "qk_clip/heads_clipped": float((gammas < 1).sum()),
        "qk_clip/smallest_gamma": float(gammas.min()),
    }


def describe(assignment: Assignment, report: Report) -> str:
    """One line for each kind of matrix, with the layers and experts it stands for, and the plan."""
    shapes: dict[str, tuple[str, str, str]] = {}
    counts = Counter[str]()
    for matrix in assignment.matrices.values():
        name = re.sub(r"\.\d+", ".*", matrix.name)
        counts[name] += 1
        shapes[name] = "muon", f"{matrix.rows} x {matrix.cols}", f"{matrix.scale:.2f}"
    for key, reason in assignment.adamw.items():
        name = re.sub(r"\.\d+", ".*", key)
        counts[name] += 1
        shapes[name] = f"adamw: {reason}", "", ""
    rows = [("matrix", "number", "rule", "rows x columns", "scale")]
    rows += [(name, str(counts[name]), *shapes[name]) for name in shapes]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    placement = report.placement
    data, tensor = (value / 2**20 for value in report.wire_bytes)
    lines.append(
        f"Newton-Schulz on this stage: {placement.num_matrices} matrices, longest queue "
        f"{placement.balance:.2f} of the mean; gathered a step over all ranks: {data:.1f} MiB "
        f"across shards, {tensor:.1f} MiB across tensor ranks"
    )
    return "\n".join(lines)
