# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""On a real GPU: megatron-core's fused rotary kernels, as they are set up here, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from k2_megatron.config.loader import load_config
from k2_megatron.model.transformer import fuses_rope
from k2_megatron.platform.cuda import CudaPlatform
from k2_megatron.platform.engine import fix_rope_blocks

MEDIUM = Path(__file__).with_name("medium.yaml")
SEQ, BATCH, NOPE, ROPE, VALUE = 96, 2, 128, 64, 128
# K2's heads on 1 and 8 ranks, and numbers of heads that are no power of 2.
HEADS = (64, 8, 6, 3)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [s, b, n, 64], pairs interleaved, rotated; halves behind one another."""
    even, odd = x[..., 0::2], x[..., 1::2]
    left, right = cos[..., :32], cos[..., 32:]
    return torch.cat(
        (even * left - odd * sin[..., :32], odd * right + even * sin[..., 32:]), dim=-1
    )


def angles() -> tuple[torch.Tensor, torch.Tensor]:
    frequencies = 50000.0 ** -(torch.arange(0, ROPE, 2, dtype=torch.float64) / ROPE)
    freqs = torch.outer(torch.arange(SEQ, dtype=torch.float64), frequencies)
    emb = torch.cat((freqs, freqs), dim=-1)[:, None, None, :].cuda()
    return emb.cos(), emb.sin()


def drawn(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).bfloat16().cuda()


@pytest.mark.parametrize(
    ("overrides", "tokens", "fused"),
    [
        ([], 256, True),
        (["model.qk_head_dim=192", "model.v_head_dim=256"], 256, False),
        (["model.v_head_dim=96"], 256, False),
        (["model.qk_pos_emb_head_dim=48"], 256, False),
        (["model.qk_pos_emb_head_dim=2"], 256, False),
        (["precision.dtype=fp32"], 256, False),
        (["parallel.context_parallel_size=2"], 256, False),
        (["model.num_attention_heads=64"], 131072, False),
        (["model.num_attention_heads=64"], 131071, True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_only_sizes_that_the_kernels_can_take_are_fused(
    overrides: list[str], tokens: int, fused: bool
) -> None:
    """Triton refused ranges that are no power of 2 at the first forward."""
    config = load_config(str(MEDIUM), overrides)
    assert fuses_rope(config, CudaPlatform(), tokens) is fused


@pytest.mark.gpu
@pytest.mark.parametrize("heads", HEADS)
def test_fused_rotary_kernels_against_float64(heads: int) -> None:
    from megatron.core.fusions.fused_mla_yarn_rope_apply import (
        fused_apply_mla_rope_for_kv,
        fused_apply_mla_rope_for_q,
    )

    fix_rope_blocks(heads)
    cos, sin = angles()
    short = (cos.bfloat16().contiguous(), sin.bfloat16().contiguous())
    q = drawn(SEQ, BATCH, heads, NOPE + ROPE, seed=1).requires_grad_()
    kv = drawn(SEQ, BATCH, heads, NOPE + VALUE, seed=2).requires_grad_()
    shared = drawn(SEQ, BATCH, 1, ROPE, seed=3).requires_grad_()
    leaves = (q, kv, shared)
    # The kernel for queries writes into its input, which in the model is a linear layer's output.
    query = fused_apply_mla_rope_for_q(q * 1.0, *short, NOPE, ROPE)
    key, value = fused_apply_mla_rope_for_kv(kv, shared, *short, ROPE, NOPE, VALUE)
    outputs = (query, key, value)
    gradients = [drawn(*one.shape, seed=4 + index) for index, one in enumerate(outputs)]
    found = torch.autograd.grad(outputs, leaves, [one.clone() for one in gradients])

    exact = [one.detach().double().requires_grad_() for one in leaves]
    parts = exact[0].split([NOPE, ROPE], -1), exact[1].split([NOPE, VALUE], -1)
    positions = rotated(exact[2], cos, sin).expand(-1, -1, heads, -1)
    expected = (
        torch.cat((parts[0][0], rotated(parts[0][1], cos, sin)), -1),
        torch.cat((parts[1][0], positions), -1),
        parts[1][1],
    )
    wanted = torch.autograd.grad(expected, exact, [one.double() for one in gradients])
    for one, other in zip((*outputs, *found), (*expected, *wanted), strict=True):
        # Cosine, two products and their sum, each rounded to bf16: four times 2^-9.
        error = (one.double() - other).norm() / other.norm()
        assert error < 2**-7, float(error)


@pytest.mark.gpu
def test_fused_rotary_kernels_repeat_their_bits() -> None:
    """The gradient of the shared rotary key is a sum over heads."""
    from megatron.core.fusions.fused_mla_yarn_rope_apply import fused_apply_mla_rope_for_kv

    fix_rope_blocks(64)
    cos, sin = (one.bfloat16().contiguous() for one in angles())
    kv = drawn(SEQ, BATCH, 64, NOPE + VALUE, seed=2).requires_grad_()
    shared = drawn(SEQ, BATCH, 1, ROPE, seed=3).requires_grad_()
    sums = []
    for _ in range(3):
        key, _ = fused_apply_mla_rope_for_kv(kv, shared, cos, sin, ROPE, NOPE, VALUE)
        sums.append(torch.autograd.grad(key, shared, drawn(*key.shape, seed=5))[0])
    assert all(torch.equal(one, sums[0]) for one in sums)
