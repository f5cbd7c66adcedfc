# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The elementwise halves of a Muon step in PyTorch: every operation one rounding, in this order.

The Triton kernels do the same operations in the same order and are compared with these bit for
bit, so no multiplication here may hide in an addition (`add(..., alpha=)` may round once).
"""

from __future__ import annotations

import torch
from torch import Tensor


def momentum_direction_(
    momentum: Tensor,
    gradient: Tensor,
    out: Tensor,
    *,
    mu: float,
    grad_scale: float,
    nesterov: bool,
) -> None:
    """See `dispatch.momentum_direction_`."""
    scaled = gradient.to(torch.float32) * grad_scale
    updated = momentum.to(torch.float32) * mu + scaled
    momentum.copy_(updated)
    out.copy_(scaled + updated * mu if nesterov else updated)


def apply_update_(
    master: Tensor,
    update: Tensor,
    *,
    lr: float,
    weight_decay: float,
    scale: float,
    parameter: Tensor | None,
) -> None:
    """See `dispatch.apply_update_`."""
    change = update.to(torch.float32) * scale + master * weight_decay
    master.sub_(change * lr)
    if parameter is not None:
        parameter.copy_(master)
