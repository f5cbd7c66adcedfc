# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The optimizer a script writes today: a loop over emerging-optimizers, and PyTorch's fused AdamW.

Unsharded, for one data-parallel rank: fp32 masters and moments, clipping by the global norm.
"""

from __future__ import annotations

import math
from typing import Any

import torch

MU, LR, DECAY = 0.95, 2e-4, 0.1
TABLES = ("embedding.", "output_layer.")


class LoopOptimizer:
    """Muon one matrix after the other where `muon`, AdamW for the rest or for everything."""

    def __init__(self, chunks: list[Any], *, muon: bool) -> None:
        self.hidden: list[tuple[Any, torch.Tensor, torch.Tensor, int]] = []
        self.rest: list[tuple[Any, torch.Tensor]] = []
        for chunk in chunks:
            for name, parameter in chunk.module.named_parameters():
                master = parameter.detach().float()
                if muon and parameter.dim() == 2 and not name.startswith(TABLES):
                    gated = 2 if "linear_fc1" in name else 1
                    momentum = torch.zeros_like(master)
                    self.hidden.append((parameter, master, momentum, gated))
                else:
                    self.rest.append((parameter, master))
        masters = [master for _, master in self.rest]
        self.adamw = torch.optim.AdamW(
            masters, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=DECAY, fused=True
        )
        torch.set_float32_matmul_precision("medium")  # as emerging-optimizers asks

    @torch.no_grad()
    def step(self) -> None:
        """Clip, update and write the bf16 parameters."""
        every = [p.main_grad for p, *_ in (*self.hidden, *self.rest)]
        norm = torch.stack(torch._foreach_norm(every)).norm()
        torch._foreach_mul_(every, float((1.0 / (norm + 1e-6)).clamp(max=1.0)))
        for parameter, master in self.rest:
            master.grad = parameter.main_grad.view_as(master)
        self.adamw.step()
        torch._foreach_copy_([p.data for p, _ in self.rest], [m for _, m in self.rest])
        for parameter, master, momentum, gated in self.hidden:
            gradient = parameter.main_grad
            momentum.mul_(MU).add_(gradient)
            direction = gradient.add(momentum, alpha=MU)
            for part, target in zip(direction.chunk(gated), master.chunk(gated), strict=True):
                update = _newton_schulz(part)
                target.mul_(1 - LR * DECAY)
                target.add_(update, alpha=-LR * 0.2 * math.sqrt(max(part.shape)))
            parameter.data.copy_(master)


def _newton_schulz(direction: torch.Tensor) -> torch.Tensor:
    from emerging_optimizers.orthogonalized_optimizers.muon_utils import newton_schulz

    result: torch.Tensor = newton_schulz(direction, 5, "simple")
    return result
