# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Muon's direction beside PyTorch's own optimizer."""

from __future__ import annotations

import math

import pytest
import torch

from k2_megatron.kernels.muon_update.dispatch import apply_update_, momentum_direction_
from k2_megatron.kernels.newton_schulz.dispatch import orthogonalise

MU, RATE, DECAY = 0.95, 0.02, 0.1


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (64, 64)], ids=str)
def test_weights_follow_torchs_muon(shape: tuple[int, int], nesterov: bool) -> None:
    """torch.optim.Muon keeps an average in place of a sum, the same direction, and computes bf16.

    Both products are rounded to bf16 ten times, in other orders: some 2^-8 sqrt(10) of the update.
    """
    torch.manual_seed(1)
    gradients = [torch.randn(shape) for _ in range(4)]
    theirs = torch.nn.Parameter(torch.randn(shape))
    optimizer = torch.optim.Muon(
        [theirs],
        lr=RATE,
        weight_decay=DECAY,
        momentum=MU,
        nesterov=nesterov,
        ns_coefficients=(3.4445, -4.775, 2.0315),
        adjust_lr_fn="match_rms_adamw",
    )
    ours = theirs.detach().clone()
    momentum = torch.zeros(shape)
    for gradient in gradients:
        before = ours.clone()
        theirs.grad = gradient.clone()
        optimizer.step()
        out = torch.empty(ours.numel(), dtype=torch.bfloat16)
        momentum_direction_(
            momentum.view(-1), gradient.view(-1), out, mu=MU, grad_scale=1.0, nesterov=nesterov
        )
        update = orthogonalise(out.view(1, *shape), dtype=torch.bfloat16)
        scale = 0.2 * math.sqrt(max(shape))
        apply_update_(
            ours.view(-1),
            update.reshape(-1),
            lr=RATE,
            weight_decay=DECAY,
            scale=scale,
            parameter=None,
        )
        moved = (ours - before).norm()
        assert (ours - theirs.detach()).norm() < 0.02 * moved
        with torch.no_grad():
            theirs.copy_(ours)
