# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a rank does in the tests of SwiGLU: megatron-core's own MLP, its linear layers left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from k2_megatron.platform.cpu import CpuPlatform

# Tokens, sequences (0: the rows of experts, without that dimension), half the columns. Sizes that
# fill vector registers and ones that leave ends, which other instructions compute.
SHAPES = [(0, 0, 24), (1, 0, 8), (37, 0, 129), (64, 0, 704), (9, 3, 7), (16, 2, 256)]


class Pass(nn.Module):
    """A linear layer that gives back what it is given."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x, None


def engine_swiglu() -> list[dict[str, Any]]:
    """Results and gradients of `MLP.forward`, set up as the CPU platform does, for each case."""
    from megatron.core.transformer.mlp import MLP, MLPSubmodules
    from megatron.core.transformer.transformer_config import TransformerConfig

    mlp = MLP(
        TransformerConfig(
            num_layers=1,
            hidden_size=8,
            num_attention_heads=1,
            gated_linear_unit=True,
            activation_func=torch.nn.functional.silu,
            add_bias_linear=False,
            bias_activation_fusion=CpuPlatform().transformer_options()["bias_activation_fusion"],
        ),
        MLPSubmodules(linear_fc1=Pass, linear_fc2=Pass),
        ffn_hidden_size=8,
    )
    generator = torch.Generator().manual_seed(0)
    found = []
    for tokens, sequences, half in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            for weighted in (False, True) if sequences == 0 else (False,):
                shape = (tokens, sequences) if sequences else (tokens,)
                x = (3 * torch.randn(*shape, 2 * half, generator=generator)).to(dtype)
                dy = torch.randn(*shape, half, generator=generator).to(dtype)
                probs = torch.rand(shape, generator=generator) if weighted else None
                x.requires_grad_()
                if probs is not None:
                    probs.requires_grad_()
                y, _ = mlp(x, per_token_scale=probs)
                y.backward(dy)
                found.append(
                    {
                        "x": x.detach(),
                        "probs": None if probs is None else probs.detach(),
                        "dy": dy,
                        "y": y.detach(),
                        "dx": x.grad,
                        "dprobs": None if probs is None else probs.grad,
                    }
                )
    return found
