# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Parameter counts against published numbers and against matrices written out by hand."""

import pytest

from k2_megatron.config.presets import model_from_preset
from k2_megatron.planner.parameters import count_parameters


def test_kimi_k2_has_as_many_as_the_released_checkpoint():
    counts = count_parameters(model_from_preset("kimi-k2"))
    assert counts.total == 1_026_408_232_448
    assert counts.attention == 61 * 101_122_048
    assert counts.routed_experts == 60 * 384 * 44_040_192
    assert counts.shared_experts == 60 * 44_040_192
    assert counts.dense_ffn == 396_361_728
    assert counts.router == 60 * (2_752_512 + 384)
    assert counts.norms == 61 * 16_384 + 7168
    assert counts.embedding == counts.head == 1_174_405_120
    assert counts.mtp == 0
    assert round(counts.active / 1e9, 3) == 32.862
    assert round(counts.active_without_embedding / 1e9, 3) == 31.687


def test_moonlight_has_the_published_sizes():
    """The paper counts 15.29 B and 2.24 B active, both without embedding and head."""
    counts = count_parameters(model_from_preset("moonlight-16b-a3b"))
    vocabulary = counts.embedding + counts.head
    assert round((counts.total - vocabulary) / 1e9, 2) == 15.29
    assert round((counts.active - vocabulary) / 1e9, 2) == 2.24


def test_deepseek_v3_has_the_published_671_billion():
    """A shape that is no preset, with three dense layers."""
    model = model_from_preset(
        "kimi-k2",
        num_attention_heads=128,
        num_experts=256,
        first_k_dense_replace=3,
        vocab_size=129280,
    )
    counts = count_parameters(model)
    assert round(counts.total / 1e9, 2) == 671.03
    assert round(counts.active_without_embedding / 1e9, 1) == 36.6


@pytest.mark.parametrize("with_query_latent", [True, False])
@pytest.mark.parametrize("num_dense", [0, 1, 3])
@pytest.mark.parametrize("num_mtp", [0, 1, 2])
def test_equals_the_sum_over_every_tensor(with_query_latent, num_dense, num_mtp):
    """Count [rows, columns] of each tensor of a model whose sizes are all different."""
    model = model_from_preset(
        "k2-tiny",
        num_layers=3,
        hidden_size=10,
        num_attention_heads=3,
        q_lora_rank=7 if with_query_latent else None,
        kv_lora_rank=5,
        qk_head_dim=4,
        qk_pos_emb_head_dim=2,
        v_head_dim=6,
        ffn_hidden_size=11,
        first_k_dense_replace=num_dense,
        num_experts=8,
        moe_ffn_hidden_size=9,
        moe_shared_expert_intermediate_size=13,
        moe_router_topk=2,
        vocab_size=17,
        mtp_num_layers=num_mtp,
    )
    attention = [(3 * 6, 7), (7, 10), (7, 1)] if with_query_latent else [(3 * 6, 10)]
    attention += [(5 + 2, 10), (5, 1), (3 * (4 + 6), 5), (10, 3 * 6), (10, 1), (10, 1)]
    dense = [*attention, (11, 10), (11, 10), (10, 11)]
    common = [*attention, (8, 10), (8, 1), (13, 10), (13, 10), (10, 13)]
    expert = [(9, 10), (9, 10), (10, 9)]
    outside = [(17, 10), (17, 10), (10, 1)]
    joining = [(10, 20), (10, 1), (10, 1), (10, 1)]

    def model_tensors(experts: int) -> list[tuple[int, int]]:
        moe = common + experts * expert
        layers = num_dense * dense + (3 - num_dense) * moe
        return layers + outside + num_mtp * (joining + (moe if num_dense < 3 else dense))

    counts = count_parameters(model)
    assert counts.total == sum(rows * columns for rows, columns in model_tensors(8))
    assert counts.active == sum(rows * columns for rows, columns in model_tensors(2))
