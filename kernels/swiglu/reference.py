# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""SwiGLU in PyTorch, operation by operation as megatron-core and autograd compute it on a CPU.

megatron-core without fused activations (transformer/mlp.py, `MLP.forward`) takes

    h = silu(gate) * (up + 0)          in x's dtype
    y = (h * probs).to(x's dtype)      in fp32, for routed experts

and autograd derives the backward from it. The same operations run here on the same strides and in
the same order, so results and both gradients are equal bit for bit, but for the sign of a zero that
`up + 0` may change. The rounding of every step to x's dtype is part of that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(x: Tensor, probs: Tensor | None) -> Tensor:
    """See `dispatch.swiglu`."""
    gate, up = torch.chunk(x, 2, dim=-1)
    product = F.silu(gate) * up
    if probs is None:
        return product
    return (product * probs.unsqueeze(-1)).to(x.dtype)


def swiglu_backward(dy: Tensor, x: Tensor, probs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """See `dispatch.swiglu_backward`."""
    gate, up = torch.chunk(x, 2, dim=-1)
    activated = F.silu(gate)
    dprobs = None
    if probs is not None:
        wide = dy.to(torch.promote_types(x.dtype, probs.dtype))
        dprobs = (wide * (activated * up)).sum(-1, keepdim=True).squeeze(-1).to(probs.dtype)
        dy = (wide * probs.unsqueeze(-1)).to(x.dtype)
    dgate = torch.ops.aten.silu_backward(dy * up, gate)
    return torch.cat((dgate, dy * activated), dim=-1), dprobs
