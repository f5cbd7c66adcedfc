# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The router's selection bias: load counted over the global batch, moved once a step.

The rule is Moonlight's (arXiv 2502.16982): b_i += u (sign(e_i) - mean_j sign(e_j)), with e_i the
shortfall of expert i against the mean load. megatron-core has the uncentred rule and applies it
before the optimizer knows whether the step counts (finalize_model_grads.py:476), so its rate is
set to 0 and the update is made here, after the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from k2_megatron.parallel.topology import Topology


@dataclass(frozen=True, kw_only=True)
class RoutedLayer:
    """A router of this rank. index: global 0-based layer; MTP layers follow the decoder's."""

    index: int
    router: Any


class RouterBias:
    """Collects expert loads of a step and moves the selection biases of this rank's routers.

    `rate` may be set between steps: annealing freezes the biases.
    """

    def __init__(self, layers: Sequence[RoutedLayer], topology: Topology, *, rate: float) -> None:
        """Take charge of the routers.

        Args:
            layers: this rank's routers; the same on all ranks of its `tp_dp_cp` group.
            topology: loads are summed over `tp_dp_cp`.
            rate: u, 1e-3 in Moonlight; 0 freezes the biases.
        """
        self._layers = list(layers)
        self._group = topology.tp_dp_cp.group
        self.rate = rate
        self._loads: torch.Tensor | None = None

    def collect(self) -> None:
        """Sum the step's tokens per expert over the global batch; call before they are reset."""
        if not self._layers:
            return
        counts = [layer.router.local_tokens_per_expert for layer in self._layers]
        loads = torch.stack(counts).double()  # exact integers beyond fp32's 2^24
        dist.all_reduce(loads, group=self._group)
        self._loads = loads

    @torch.no_grad()
    def update(self) -> None:
        """Apply the centred rule with the loads collected last."""
        if self._loads is None or self.rate == 0:
            return
        shortfall = torch.sign(self._loads.mean(dim=1, keepdim=True) - self._loads)
        moves = self.rate * (shortfall - shortfall.mean(dim=1, keepdim=True))
        for layer, move in zip(self._layers, moves, strict=True):
            layer.router.expert_bias += move.to(layer.router.expert_bias.dtype)

    def loads(self) -> dict[int, list[float]]:
        """Tokens per expert of the last step by layer index, of this pipeline rank's layers."""
        if self._loads is None:
            return {}
        rows = self._loads.tolist()
        return {layer.index: row for layer, row in zip(self._layers, rows, strict=True)}

    def tensors(self) -> dict[int, torch.Tensor]:
        """The biases themselves, fp32 [num_experts], by layer index."""
        return {layer.index: layer.router.expert_bias for layer in self._layers}

    def biases(self) -> dict[int, list[float]]:
        """Selection bias per expert by layer index, of this pipeline rank's layers."""
        if not self._layers:
            return {}
        rows = torch.stack([layer.router.expert_bias for layer in self._layers]).tolist()
        return {layer.index: row for layer, row in zip(self._layers, rows, strict=True)}
