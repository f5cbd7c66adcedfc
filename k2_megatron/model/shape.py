# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From the configuration to what the geometry table and the pipeline layout need to know."""

from __future__ import annotations

from k2_megatron.config.config import Config
from k2_megatron.config.model import ModelConfig
from k2_megatron.parallel.canonical import ModelShape
from k2_megatron.parallel.layout import PipelineLayout, parse_layout


def model_shape(model: ModelConfig) -> ModelShape:
    """The sizes that decide the model's matrices."""
    return ModelShape(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_attention_heads,
        q_lora_rank=model.q_lora_rank,
        kv_lora_rank=model.kv_lora_rank,
        qk_head_dim=model.qk_head_dim,
        qk_rope_dim=model.qk_pos_emb_head_dim,
        v_head_dim=model.v_head_dim,
        ffn_size=model.ffn_hidden_size,
        num_dense_layers=model.first_k_dense_replace,
        num_experts=model.num_experts,
        expert_size=model.moe_ffn_hidden_size,
        shared_expert_size=model.moe_shared_expert_intermediate_size,
        vocab_size=model.vocab_size,
        num_mtp_layers=model.mtp_num_layers,
    )


def pipeline_layout(config: Config) -> PipelineLayout:
    """Which layers live on which stage: as written in the YAML, or placed by cost.

    Raises:
        ConfigError: the written layout does not fit the model or the number of stages.
        TopologyError: no number of processes fits the configuration.
    """
    parallel, model = config.parallel, config.model
    virtual_size = parallel.virtual_pipeline_model_parallel_size or 1
    if parallel.pipeline_model_parallel_layout is not None:
        return parse_layout(
            parallel.pipeline_model_parallel_layout,
            num_layers=model.num_layers,
            pipeline_size=parallel.pipeline_model_parallel_size,
            virtual_size=virtual_size,
            num_mtp_layers=model.mtp_num_layers,
        )
    # The planner weighs stages by what they hold, and needs this module to know what that is.
    from k2_megatron.planner.place import placed_layout

    return placed_layout(config)
