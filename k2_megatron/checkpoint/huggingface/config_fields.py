# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What every field of a DeepSeek-V3 `config.json` means here: nothing of one is passed over."""

from __future__ import annotations

from typing import Any

# Field -> key of our `model` section, one value for one value.
TO_MODEL = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_head_dim",
    "qk_rope_head_dim": "qk_pos_emb_head_dim",
    "v_head_dim": "v_head_dim",
    "intermediate_size": "ffn_hidden_size",
    "first_k_dense_replace": "first_k_dense_replace",
    "n_routed_experts": "num_experts",
    "moe_intermediate_size": "moe_ffn_hidden_size",
    "num_experts_per_tok": "moe_router_topk",
    "n_group": "moe_router_num_groups",
    "topk_group": "moe_router_group_topk",
    "routed_scaling_factor": "moe_router_topk_scaling_factor",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "layernorm_epsilon",
}
FLOATS = frozenset({"routed_scaling_factor", "rms_norm_eps"})

# Field -> the only value that our model has; a file without the field means that value.
FIXED: dict[str, object] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "tie_word_embeddings": False,
    "rope_interleave": True,
    "pretraining_tp": 1,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "partial_rotary_factor": 1.0,
}

# Read by `config_json.py` in its own way.
SPECIAL = frozenset(
    {
        "architectures",
        "model_type",
        "n_shared_experts",
        "norm_topk_prob",
        "num_key_value_heads",
        "head_dim",
        "qk_head_dim",
        "num_nextn_predict_layers",
        "num_mtp_layers",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "quantization_config",
    }
)

# How a model is trained, sampled, split or stored: no part of what the weights compute.
NO_PART_OF_THE_MODEL = frozenset(
    {
        "auto_map",
        "aux_loss_alpha",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "ep_size",
        "id2label",
        "initializer_range",
        "label2id",
        "max_position_embeddings",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "seq_aux",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "_name_or_path",
    }
)

KNOWN = frozenset(TO_MODEL) | frozenset(FIXED) | SPECIAL | NO_PART_OF_THE_MODEL

# DeepSeek's own code and transformers compute the norms of the two latents with this, whatever
# rms_norm_eps says; servers and megatron-core take rms_norm_eps there too.
LATENT_NORM_EPSILON = 1e-6

ARCHITECTURE = "DeepseekV3ForCausalLM"
MODEL_TYPES = ("deepseek_v3", "kimi_k2")

# Field of YaRN's table -> key of our `model` section, and its value where it is left out.
YARN_TO_MODEL: dict[str, tuple[str, float | None]] = {
    "factor": ("rotary_scaling_factor", None),
    "original_max_position_embeddings": ("original_max_position_embeddings", None),
    "beta_fast": ("beta_fast", 32.0),
    "beta_slow": ("beta_slow", 1.0),
    "mscale": ("mscale", 1.0),
    "mscale_all_dim": ("mscale_all_dim", 0.0),
}
YARN_FIXED: dict[str, object] = {
    "attention_factor": None,
    "truncate": True,
    "partial_rotary_factor": 1.0,
}
ROPE_NAMES = frozenset({"type", "rope_type", "rope_theta"})

QUANTIZATION_FIXED: dict[str, object] = {"quant_method": "fp8", "fmt": "e4m3"}
# `activation_scheme` says how a server quantises activations, which training does not; which
# modules are quantised, the tensors' own dtypes say.
QUANTIZATION_KNOWN = frozenset(QUANTIZATION_FIXED) | {
    "weight_block_size",
    "activation_scheme",
    "modules_to_not_convert",
}


def groups_problem(num_groups: Any, group_topk: Any, topk: Any) -> str:
    """Why groups of experts would be chosen otherwise by the two sides; empty if they agree.

    megatron-core ranks groups by the sum of their best topk // group_topk scores
    (transformer/moe/moe_utils.py, `group_limited_topk`), DeepSeek-V3 by that of their best two.
    """
    if num_groups == 1 or topk // group_topk == 2:
        return ""
    return (
        f"{group_topk} of {num_groups} groups for {topk} experts; with groups, two experts must be "
        "chosen for each chosen group: DeepSeek-V3 ranks groups by their best two, "
        f"megatron-core by their best {topk // group_topk}"
    )


def mscale_problem(mscale: Any, mscale_all_dim: Any) -> str:
    """Why YaRN's factor on cosine and sine would differ between readers; empty if they agree.

    transformers takes 0.1 ln(factor) + 1 where one of the two is 0; DeepSeek's own code and
    megatron-core put both into one formula.
    """
    if (mscale and mscale_all_dim) or (mscale == 1 and not mscale_all_dim):
        return ""
    return (
        f"{mscale:g} beside mscale_all_dim {mscale_all_dim:g}, which readers of config.json take "
        "differently; allowed: both above 0, or 1 beside 0"
    )


def epsilon_note(epsilon: object) -> str | None:
    """What to tell where the readers of a release differ in the norms of the latents."""
    if epsilon == LATENT_NORM_EPSILON:
        return None
    return (
        f"rms_norm_eps is {epsilon}: training uses it in the norms of the latents too, as servers "
        "do; transformers and DeepSeek's own code use 1e-06 there"
    )
