# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The model presets: what each differs in from Kimi K2, whose values are the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from k2_megatron.config.model import ModelConfig

MODEL_PRESETS: Mapping[str, Mapping[str, object]] = {
    "kimi-k2": {},
    # Moonlight (arXiv 2502.16982): two shared experts of width 1408; its YaRN-free RoPE is K2's.
    "moonlight-16b-a3b": {
        "num_layers": 27,
        "hidden_size": 2048,
        "num_attention_heads": 16,
        "q_lora_rank": None,
        "ffn_hidden_size": 11264,
        "num_experts": 64,
        "moe_ffn_hidden_size": 1408,
        "moe_shared_expert_intermediate_size": 2 * 1408,
        "moe_router_topk": 6,
        "moe_router_topk_scaling_factor": 2.446,
        "layernorm_epsilon": 1e-5,
        "init_method_std": 0.02,
    },
    # A K2 for a laptop's CPU. The vocabulary is the 256 bytes and a few special tokens, a multiple
    # of 8. The scaling factor is K2's recipe for 2 of 8 experts: the mean of 1/norm2(weights) over
    # 4 million draws of standard normal logits is 1.40879 +- 0.00001.
    "k2-tiny": {
        "num_layers": 4,
        "hidden_size": 128,
        "num_attention_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 32,
        "qk_head_dim": 32,
        "qk_pos_emb_head_dim": 16,
        "v_head_dim": 32,
        "ffn_hidden_size": 384,
        "num_experts": 8,
        "moe_ffn_hidden_size": 96,
        "moe_shared_expert_intermediate_size": 96,
        "moe_router_topk": 2,
        "moe_router_topk_scaling_factor": 1.409,
        "vocab_size": 264,
        "init_method_std": 0.02,
    },
}


def model_from_preset(preset: str, **overrides: Any) -> ModelConfig:
    """Build a preset's model in Python, with keyword arguments replacing the preset's values."""
    return ModelConfig(**{**MODEL_PRESETS[preset], **overrides, "preset": preset})
