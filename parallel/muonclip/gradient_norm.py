# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The 2-norm of the whole model's gradient, every element counted once.

megatron-core sums expert gradients over a group that forgets ranks where expert and tensor
parallelism meet; here each rank adds the squares of what it alone owns and one sum over all
processes makes the norm, in whatever layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


class GradientNorm:
    """The norm over shards that are this rank's to count."""

    def __init__(self, gradients: Sequence[torch.Tensor], device: torch.device) -> None:
        """Take charge of gradient views.

        Args:
            gradients: fp32 shards, of copies and shared parameters those of one rank only.
            device: where the sum is made.
        """
        self._gradients = list(gradients)
        self._device = device

    def compute(self) -> float:
        """The norm, inf or NaN where a gradient is not finite. Collective over all processes.

        Waits for the device: the optimizer must know before it changes anything.
        """
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        if self._gradients:
            norms = torch._foreach_norm(self._gradients)
            total += torch.stack(norms).double().square().sum()
        dist.all_reduce(total)
        return float(total.sqrt())


def clip_factor(norm: float, limit: float) -> float:
    """What gradients are multiplied with so that their norm is at most `limit`; 0: no limit."""
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
