# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From the configuration to megatron-core's TransformerConfig."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import MLATransformerConfig

from k2_megatron.config.config import Config
from k2_megatron.config.model import ModelConfig
from k2_megatron.parallel.layout import PipelineLayout
from k2_megatron.platform.base import Platform


def parameter_dtype(config: Config) -> torch.dtype:
    """The dtype in which the model computes and holds its weights."""
    return torch.float32 if config.precision.dtype == "fp32" else torch.bfloat16


def records_max_logits(config: Config) -> bool:
    """Whether training measures the largest attention logit of every head, for QK-Clip."""
    return config.optimizer.type == "muonclip" and config.optimizer.qk_clip != "none"


def fuses_rope(config: Config, platform: Platform, most_tokens: int) -> bool:
    """Whether rotary positions, and the copies that put queries, keys and values together, are one
    kernel each way.

    Not under context parallelism: yarn_rotary_pos_embedding.py:189 cuts cosines of its own length
    for the rank, not those of the sequence. Not in fp32, which is there to be compared. Not where a
    part of a head has another size than a power of 2, which Triton's ranges must have
    (fused_mla_yarn_rope_apply.py:440), or positions fewer elements than 4 (:631); nor where an
    offset would not fit 32 bits (:437).

    Args:
        config: of the phase.
        platform: prepared for this rank.
        most_tokens: of a micro-batch, in this phase or one that goes on in the same processes.
    """
    model = config.model
    sizes = (model.qk_head_dim, model.v_head_dim, model.qk_pos_emb_head_dim)
    heads = model.num_attention_heads // config.parallel.tensor_model_parallel_size
    widest = model.qk_head_dim + max(model.v_head_dim, model.qk_pos_emb_head_dim)
    return (
        platform.uses_transformer_engine
        and config.precision.dtype != "fp32"
        and config.parallel.context_parallel_size == 1
        and all(size & (size - 1) == 0 for size in sizes)
        and model.qk_pos_emb_head_dim >= 4
        and most_tokens * heads * widest < 2**31
    )


def transformer_config(
    config: Config, layout: PipelineLayout, platform: Platform, most_tokens: int
) -> MLATransformerConfig:
    """Everything megatron-core's modules and schedules want to know about this run.

    Args:
        config: of the phase.
        layout: of its pipeline.
        platform: prepared for this rank.
        most_tokens: see `fuses_rope`.
    """
    dtype = parameter_dtype(config)
    return MLATransformerConfig(
        **_model_fields(config.model),
        **_rope_fields(config.model, fused=fuses_rope(config, platform, most_tokens)),
        **_moe_fields(config.model),
        **_parallel_fields(config, layout),
        moe_token_dispatcher_type=config.parallel.moe_token_dispatcher_type,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # Not `qk_clip`, which would arm megatron-core's own clipping as well.
        log_max_attention_logit=records_max_logits(config),
        # Weights are filled by model/initialise.py, the same in every layout.
        perform_initialization=False,
        **platform.transformer_options(),
    )


def _model_fields(model: ModelConfig) -> dict[str, Any]:
    return {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "multi_latent_attention": True,
        "q_lora_rank": model.q_lora_rank,
        "kv_lora_rank": model.kv_lora_rank,
        "qk_head_dim": model.qk_head_dim,
        "qk_pos_emb_head_dim": model.qk_pos_emb_head_dim,
        "v_head_dim": model.v_head_dim,
        "qk_layernorm": True,
        "normalization": "RMSNorm",
        "layernorm_epsilon": model.layernorm_epsilon,
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "mtp_num_layers": model.mtp_num_layers or None,
        "mtp_loss_scaling_factor": model.mtp_loss_scaling_factor,
    }


def _rope_fields(model: ModelConfig, *, fused: bool) -> dict[str, Any]:
    yarn = model.rope_type == "yarn"
    return {
        # The fused kernels take cosines that only YaRN's class keeps; stretched by a factor of 1
        # it gives plain RoPE's.
        "apply_rope_fusion": fused,
        "rope_type": "yarn" if fused else model.rope_type,
        "rotary_base": model.rotary_base,
        # multi_latent_attention.py:125 puts mscale^2 into the softmax scale for plain RoPE too;
        # a factor of 1 makes it 1.
        "rotary_scaling_factor": model.rotary_scaling_factor if yarn else 1.0,
        "original_max_position_embeddings": model.original_max_position_embeddings,
        "beta_fast": model.beta_fast,
        "beta_slow": model.beta_slow,
        "mscale": model.mscale,
        "mscale_all_dim": model.mscale_all_dim,
    }


def _moe_fields(model: ModelConfig) -> dict[str, Any]:
    num_dense = model.first_k_dense_replace
    if num_dense == model.num_layers:
        return {}
    grouped = model.moe_router_num_groups > 1
    return {
        "num_moe_experts": model.num_experts,
        "moe_layer_freq": [0] * num_dense + [1] * (model.num_layers - num_dense),
        "moe_ffn_hidden_size": model.moe_ffn_hidden_size,
        "moe_shared_expert_intermediate_size": model.moe_shared_expert_intermediate_size or None,
        "moe_router_topk": model.moe_router_topk,
        "moe_router_num_groups": model.moe_router_num_groups if grouped else None,
        "moe_router_group_topk": model.moe_router_group_topk if grouped else None,
        "moe_router_score_function": "sigmoid",
        "moe_router_topk_scaling_factor": model.moe_router_topk_scaling_factor,
        "moe_router_dtype": "fp32",
        "moe_router_enable_expert_bias": True,
        # The wheel's own update comes before the optimizer's verdict on the step and is not
        # centred; parallel/router_bias.py does it.
        "moe_router_bias_update_rate": 0.0,
        "moe_router_load_balancing_type": "seq_aux_loss" if model.moe_aux_loss_coeff else "none",
        "moe_aux_loss_coeff": model.moe_aux_loss_coeff,
    }


def _parallel_fields(config: Config, layout: PipelineLayout) -> dict[str, Any]:
    parallel = config.parallel
    virtual = layout.virtual_size if layout.virtual_size > 1 else None
    return {
        "tensor_model_parallel_size": parallel.tensor_model_parallel_size,
        "sequence_parallel": parallel.sequence_parallel,
        "pipeline_model_parallel_size": parallel.pipeline_model_parallel_size,
        "virtual_pipeline_model_parallel_size": virtual,
        "pipeline_model_parallel_layout": (
            layout.to_megatron() if layout.pipeline_size > 1 else None
        ),
        "context_parallel_size": parallel.context_parallel_size,
        "expert_model_parallel_size": parallel.expert_model_parallel_size,
        "expert_tensor_parallel_size": parallel.expert_tensor_parallel_size,
        "overlap_moe_expert_parallel_comm": parallel.overlap_moe_expert_parallel_comm,
        "delay_wgrad_compute": parallel.delay_wgrad_compute,
        # Batched point-to-point matches messages of one pair in posting order: with two stages
        # that are each other's next and previous, the interleaved schedule then swaps them.
        "batch_p2p_comm": virtual is None,
        "overlap_p2p_comm": virtual is not None,
    }
