# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Releases as Hugging Face transformers writes them, of models that `small.yaml` can describe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

CONFIG = Path(__file__).parents[1] / "distributed" / "small.yaml"
YARN = {
    "type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 8,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
YARN_OVERRIDES = (
    "model.rope_type=yarn",
    "model.rotary_scaling_factor=8.0",
    "model.original_max_position_embeddings=8",
    "model.beta_fast=2.0",
    "model.beta_slow=0.5",
)
# small.yaml in the words of config.json, written out: what our own code says is what is tested.
SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 384,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "routed_scaling_factor": 1.409,
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "qk_nope_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 50000.0,
    "num_mtp_layers": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
OVERRIDES = ("model.num_layers=3", "model.init_method_std=0.1")
ONE_SHARED = "model.moe_shared_expert_intermediate_size=32"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model both sides can be. fields: of config.json; overrides: of small.yaml."""

    fields: dict[str, Any]
    overrides: tuple[str, ...]


SHAPES = {
    "k2": Shape(fields={}, overrides=(ONE_SHARED,)),
    "k2 with yarn": Shape(fields={"rope_scaling": YARN}, overrides=(ONE_SHARED, *YARN_OVERRIDES)),
    # No q_lora, two shared experts, another eps, 3 of 8 experts.
    "moonlight": Shape(
        fields={
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "rms_norm_eps": 1e-5,
            "num_experts_per_tok": 3,
        },
        overrides=(
            "model.q_lora_rank=null",
            "model.moe_shared_expert_intermediate_size=64",
            "model.layernorm_epsilon=1.0e-5",
            "model.moe_router_topk=3",
        ),
    ),
    # Groups as in DeepSeek-V3, two experts for each chosen group; two dense layers.
    "deepseek-v3": Shape(
        fields={
            "n_group": 4,
            "topk_group": 2,
            "num_experts_per_tok": 4,
            "first_k_dense_replace": 2,
            "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.5},
        },
        overrides=(
            ONE_SHARED,
            "model.moe_router_num_groups=4",
            "model.moe_router_group_topk=2",
            "model.moe_router_topk=4",
            "model.first_k_dense_replace=2",
            *YARN_OVERRIDES,
            "model.mscale=0.7",
            "model.mscale_all_dim=0.5",
        ),
    ),
    "one expert chosen": Shape(
        fields={"num_experts_per_tok": 1, "norm_topk_prob": False},
        overrides=(ONE_SHARED, "model.moe_router_topk=1"),
    ),
}


def random_model(shape: Shape, *, dtype: torch.dtype = torch.float32) -> DeepseekV3ForCausalLM:
    """A model in which everything counts: norms, router biases and weights are all random."""
    torch.manual_seed(3)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**{**SMALL, **shape.fields})).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "norm" in name:
                value.copy_(1 + 0.3 * torch.randn(value.shape))
            elif name.endswith("e_score_correction_bias"):
                value.copy_(0.1 * torch.randn(value.shape))
            else:
                value.normal_(std=0.1)
    return model.to(dtype)


def with_one_epsilon(model: DeepseekV3ForCausalLM) -> DeepseekV3ForCausalLM:
    """Let the norms of the latents use rms_norm_eps, which transformers gives the others alone."""
    for module in model.modules():
        if isinstance(module, DeepseekV3RMSNorm):
            module.variance_epsilon = model.config.rms_norm_eps
    return model.eval()


@torch.no_grad()
def answers(
    model: DeepseekV3ForCausalLM, tokens: list[list[int]], num_new: int
) -> dict[str, torch.Tensor]:
    """Logits of prompts and their greedy continuation, both as transformers computes them."""
    text = torch.tensor(tokens)
    found = {"logits": model(text).logits}
    found["text"] = model.generate(
        text,
        attention_mask=torch.ones_like(text),
        max_new_tokens=num_new,
        min_new_tokens=num_new,
        do_sample=False,
        pad_token_id=0,
    )
    return found
