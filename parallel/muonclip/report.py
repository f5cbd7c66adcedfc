# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What MuonClip says of itself: the table at the start, the metrics of a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.distributed as dist

from k2_megatron.errors import TrainingStoppedError
from k2_megatron.parallel.muonclip.placement import Placement
from k2_megatron.parallel.muonclip.rules import KINDS, Assignment, LogicalMatrix
from k2_megatron.parallel.muonclip.table import describe_placement, describe_rules
from k2_megatron.parallel.topology import Topology


class Report:
    """Counts of one run's plan and the statistics of its steps.

    Attributes:
        num_matrices: logical matrices of the whole model, each orthogonalised once a step.
        wire_bytes: bytes that travel in a step for Newton-Schulz, over all ranks of the job; first
            for matrices that shards alone cut, then for those that tensor parallelism cuts.
        worst_balance: longest queue of Newton-Schulz work over the mean, of the worst stage.
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
        self.num_matrices = len(assignment.matrices)
        travel = torch.tensor(
            [placement.data_elements, placement.tensor_elements], dtype=torch.int64, device=device
        )
        travel *= wire_dtype.itemsize
        dist.all_reduce(travel, group=topology.pp.group)
        stages: list[float] = [0.0] * topology.pp.size
        dist.all_gather_object(stages, placement.balance, group=topology.pp.group)
        self.worst_balance = max(stages)
        self.wire_bytes: tuple[int, int] = tuple(travel.tolist())
        self._statics: dict[tuple[str, ...], tuple[torch.Tensor, torch.Tensor]] = {}
        self._squares = torch.zeros(len(KINDS), dtype=torch.float64, device=device)
        counts = Counter[str]()
        for matrix in assignment.matrices.values():
            counts[matrix.kind] += matrix.rows * matrix.cols
        self._counts = counts

    def add(self, matrices: Sequence[LogicalMatrix], update: torch.Tensor) -> None:
        """Count orthogonalised matrices [n, rows, cols] of one batch."""
        scales, kinds = self._scales_and_kinds(matrices)
        norms = torch.linalg.vector_norm(update, dim=(1, 2), dtype=torch.float32)
        self._squares.index_add_(0, kinds, (norms * scales).double().square())

    def _scales_and_kinds(
        self, matrices: Sequence[LogicalMatrix]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the matrices of a batch, on the device; made once, for copying them would wait."""
        key = tuple(matrix.name for matrix in matrices)
        if key not in self._statics:
            device = self._squares.device
            self._statics[key] = (
                torch.tensor([matrix.scale for matrix in matrices], device=device),
                torch.tensor([KINDS.index(matrix.kind) for matrix in matrices], device=device),
            )
        return self._statics[key]

    def metrics(
        self, max_logits: torch.Tensor | None, gammas: torch.Tensor | None
    ) -> dict[str, float]:
        """The statistics of the step by TensorBoard tag. Collective over all processes.

        Raises:
            TrainingStoppedError: on every rank; an update was not finite.
        """
        squares, self._squares = self._squares, torch.zeros_like(self._squares)
        dist.all_reduce(squares)
        parts = [squares]
        if max_logits is not None and gammas is not None:
            hot = (gammas < 1).sum()
            parts += [max_logits.amax(dim=1), torch.stack([hot, gammas.min()])]
        # One copy, so that the host waits once.
        values = torch.cat([part.double() for part in parts]).tolist()
        found = {
            "muon/gather_bytes": float(self.wire_bytes[0]),
            "muon/tensor_gather_bytes": float(self.wire_bytes[1]),
        }
        for kind, total in zip(KINDS, values, strict=False):
            if self._counts[kind]:
                found[f"muon/update_rms/{kind}"] = (total / self._counts[kind]) ** 0.5
        wrong = [name for name, value in found.items() if not math.isfinite(value)]
        if wrong:
            raise TrainingStoppedError(
                f"updates of matrices are not finite after Newton-Schulz, though gradients were: "
                f"{', '.join(wrong)}; the weights are spoilt, so nothing is saved. Go on from the "
                "last checkpoint, with optimizer.muon_ns_dtype: fp32 if it comes again"
            )
        return found | (_logit_metrics(values[len(KINDS) :]) if len(parts) > 1 else {})


def _logit_metrics(values: Sequence[float]) -> dict[str, float]:
    """The largest logits of the model and of each layer, and what QK-Clip makes of them.

    Args:
        values: largest logit of each layer, heads clipped, smallest gamma.
    """
    *by_layer, hot, smallest = values
    silent = [index for index, value in enumerate(by_layer) if value == -math.inf]
    assert not silent, f"no attention logit was recorded in layers {silent}"
    found = {f"qk_clip/max_logit/layer_{i:03d}": value for i, value in enumerate(by_layer)}
    return found | {
        "qk_clip/max_logit": max(by_layer),
        "qk_clip/heads_clipped": hot,
        "qk_clip/smallest_gamma": smallest,
    }


def describe(assignment: Assignment, report: Report) -> str:
    """One line for each kind of matrix, with the layers and experts it stands for, and the plan."""
    data, tensor = (value / 2**20 for value in report.wire_bytes)
    placed = describe_placement(report.num_matrices, report.worst_balance, data, tensor)
    return f"{describe_rules(assignment)}\n{placed}"
