# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `model` section: the shape of the transformer. The defaults are Kimi K2's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from k2_megatron.config.option import option, required

# What says how YaRN stretches rotary positions; without effect on plain ones.
YARN_KEYS = (
    "rotary_scaling_factor",
    "original_max_position_embeddings",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A DeepSeek-V3-shaped transformer: latent attention (MLA) and a mixture of experts (MoE).

    Every default is Kimi K2's value (report section 2.3 and the released configuration). `preset`
    replaces some of them; keys given beside it replace the preset's.
    """

    preset: Literal["kimi-k2", "moonlight-16b-a3b", "k2-tiny"] = field(
        metadata=required(
            "Model whose values stand where a key is not given: kimi-k2 (1.03 T parameters), "
            "moonlight-16b-a3b (16.0 B), or k2-tiny (a laptop's K2 over bytes)."
        )
    )
    num_layers: int = option(
        61,
        "Transformer layers, dense and MoE together, without MTP layers. Report section 2.3.",
        minimum=1,
    )
    hidden_size: int = option(7168, "Width of the residual stream. Report section 2.3.", minimum=1)
    num_attention_heads: int = option(
        64,
        "Attention heads of a layer. K2 halves DeepSeek-V3's 128 to make long contexts cheaper. "
        "Report section 2.3.",
        minimum=1,
    )
    q_lora_rank: int | None = option(
        1536,
        "Width of the latent from which the queries are made. null: queries come straight from "
        "the hidden state, as in Moonlight.",
        minimum=1,
    )
    kv_lora_rank: int = option(
        512, "Width of the latent from which keys and values are made.", minimum=1
    )
    qk_head_dim: int = option(
        128, "Part of a head's query and key without position, in elements.", minimum=1
    )
    qk_pos_emb_head_dim: int = option(
        64,
        "Part of a head's query and key that carries the rotary position, in elements; its key is "
        "shared by all heads. Even, because rotation takes pairs.",
        minimum=2,
    )
    v_head_dim: int = option(128, "Size of a head's value, in elements.", minimum=1)
    ffn_hidden_size: int = option(
        18432,
        "Inner width of the dense feed-forward (SwiGLU) of the first first_k_dense_replace "
        "layers. 18432 = 9 x 2048, so that a dense layer costs as much as an MoE layer.",
        minimum=1,
    )
    first_k_dense_replace: int = option(
        1,
        "How many of the first layers have a dense feed-forward in place of experts. 1 because "
        "only the first layer's router is hard to balance. Report section 2.3.",
        minimum=0,
    )
    num_experts: int = option(
        384,
        "Routed experts of an MoE layer. 384 with 8 chosen is a sparsity of 48. Report section "
        "2.3.",
        minimum=1,
    )
    moe_ffn_hidden_size: int = option(2048, "Inner width of one routed expert (SwiGLU).", minimum=1)
    moe_shared_expert_intermediate_size: int = option(
        2048,
        "Inner width of the shared experts together: width of one times their number. Always "
        "active, added without a gate. 0: no shared expert.",
        minimum=0,
    )
    moe_router_topk: int = option(
        8, "Routed experts chosen for a token. Report section 2.3.", minimum=1
    )
    moe_router_num_groups: int = option(
        1,
        "Groups into which the experts are divided for group-limited routing. 1: none, as in K2. "
        "Report section 2.3.",
        minimum=1,
    )
    moe_router_group_topk: int = option(
        1, "Groups from which a token's experts may be chosen.", minimum=1
    )
    moe_router_topk_scaling_factor: float = option(
        2.827,
        "Factor on the routed experts' weights after they are made to sum to 1. It makes the "
        "weights' root sum of squares 1 on average: the mean of 1/norm2(weights) over standard "
        "normal router logits, 2.827 for 8 of 384.",
        above=0,
    )
    moe_router_bias_update_rate: float = option(
        1e-3,
        "Step by which the selection bias of an over- or underloaded expert moves at each "
        "training step. 0: the bias stays as it is (annealing). K2's rate is undisclosed; 1e-3 "
        "is Moonlight's and DeepSeek-V3's.",
        minimum=0,
    )
    moe_aux_loss_coeff: float = option(
        0.0,
        "Weight of the sequence-level load balancing loss. 0: none; the selection bias balances. "
        "K2's value is undisclosed, DeepSeek-V3 used 1.0e-4.",
        minimum=0,
    )
    vocab_size: int = option(
        163840,
        "Rows of the embedding and of the output layer, which are separate. At least the "
        "tokenizer's size.",
        minimum=1,
    )
    layernorm_epsilon: float = option(1e-6, "Added to the mean square in every RMSNorm.", above=0)
    init_method_std: float = option(
        0.006,
        "Standard deviation of the initial weights. K2's is undisclosed; 0.006 is DeepSeek-V3's "
        "at this width. Small models take 0.02.",
        above=0,
    )
    rope_type: Literal["rope", "yarn"] = option(
        "rope",
        "Rotary positions, plain or stretched by YaRN. rope while training at 4k; K2 reaches "
        "128k by yarn afterwards. Report section 2.5.",
    )
    rotary_base: float = option(50000.0, "Base of the rotary frequencies (theta).", above=0)
    rotary_scaling_factor: float = option(
        32.0, "YaRN: how many times the original context is stretched.", minimum=1
    )
    original_max_position_embeddings: int = option(
        4096, "YaRN: context in tokens before stretching.", minimum=1
    )
    beta_fast: float = option(
        1.0,
        "YaRN: frequencies that turn more often than this over the original context are left "
        "alone.",
        above=0,
    )
    beta_slow: float = option(
        1.0,
        "YaRN: frequencies that turn less often than this over the original context are divided "
        "by rotary_scaling_factor.",
        above=0,
    )
    mscale: float = option(
        1.0,
        "YaRN: strength of the factor on cosine and sine, relative to mscale_all_dim.",
        minimum=0,
    )
    mscale_all_dim: float = option(
        1.0,
        "YaRN: strength m of the factor (0.1 m ln(rotary_scaling_factor) + 1)^2 on the softmax "
        "scale.",
        minimum=0,
    )
    mtp_num_layers: int = option(
        0,
        "Multi-token-prediction layers after the last layer. 0, as in the released K2.",
        minimum=0,
    )
    mtp_loss_scaling_factor: float = option(
        0.1, "Weight of the multi-token-prediction loss.", above=0
    )
