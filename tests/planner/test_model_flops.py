# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations against a count of every multiplication."""

import pytest

from k2_megatron.config.presets import model_from_preset
from k2_megatron.planner.flops import active_matmul_parameters, model_flops_per_token


def test_kimi_k2():
    """6 N with N = 31.69 B, and 8.1 % more for the attention core at 4096 tokens."""
    model = model_from_preset("kimi-k2")
    weights = 6 * active_matmul_parameters(model)
    assert active_matmul_parameters(model) == 31_687_095_808 - 61 * 16_384 - 7168 - 60 * 384
    assert model_flops_per_token(model, 4096) / weights == pytest.approx(1.081, abs=5e-4)


@pytest.mark.parametrize("num_dense", [0, 1, 4])
@pytest.mark.parametrize("num_mtp", [0, 2])
def test_equals_the_sum_over_every_product(num_dense, num_mtp):
    """k2-tiny, each product [1, columns] x [columns, rows] at 2 operations forward, times 3."""
    model = model_from_preset("k2-tiny", first_k_dense_replace=num_dense, mtp_num_layers=num_mtp)
    sequence = 64
    attention = 128 * 64 + 64 * 4 * 48 + 128 * (32 + 16) + 32 * 4 * 64 + 4 * 32 * 128
    core = 4 * (48 + 32) * sequence // 2
    dense = attention + core + 3 * 128 * 384
    moe = attention + core + 128 * 8 + 3 * 3 * 128 * 96
    head = 128 * 264
    mtp = 2 * 128 * 128 + (moe if num_dense < 4 else dense) + head
    products = num_dense * dense + (4 - num_dense) * moe + head + num_mtp * mtp
    assert model_flops_per_token(model, sequence) == 3 * 2 * products
