# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Build the engine's model on PyTorch's meta device and count it, beside the planner's count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.config.presets import model_from_preset
from k2_megatron.config.resolve import resolve
from k2_megatron.model.shape import pipeline_layout
from k2_megatron.model.spec import decoder_spec
from k2_megatron.model.transformer import transformer_config
from k2_megatron.parallel import megatron_state
from k2_megatron.planner.job import Job
from k2_megatron.planner.parameters import count_parameters
from k2_megatron.planner.states import rank_states
from k2_megatron.platform.select import current_platform
from tests.planner.planner_helpers import config_of

K2_LAYERS = 2


def parameters(source: str) -> dict[str, int]:
    """Trainable parameters, and all stored elements with the selection biases; both ways."""
    config = _config(source)
    whole = replace(config, parallel=type(config.parallel)())
    job = Job(config=resolve(whole), num_gpus=1, on_gpu=False)
    megatron_state.initialize(
        tensor_size=1,
        pipeline_size=1,
        virtual_size=1,
        context_size=1,
        expert_size=1,
        expert_tensor_size=1,
        seed=1,
        timeout_seconds=60,
    )
    model = _build(job.config)
    trainable = sum(parameter.numel() for parameter in model.parameters())
    biases = sum(b.numel() for name, b in model.named_buffers() if name.endswith("expert_bias"))
    return {
        "built": trainable,
        "planned": rank_states(job, 0).parameters,
        "whole": trainable + biases,
        "counted": count_parameters(job.config.model).total,
    }


def _config(source: str) -> Config:
    if source.endswith(".yaml"):
        return load_config(source)
    few = {"num_layers": K2_LAYERS} if source == "kimi-k2" else {}
    return config_of(model_from_preset(source, **few))


def _build(config: Config) -> Any:
    platform = current_platform()
    transformer = transformer_config(config, pipeline_layout(config), platform, 4096)
    transformer.use_cpu_initialization = True  # the one way in which no device is named
    with torch.device("meta"):
        return GPTModel(
            transformer,
            decoder_spec(transformer, None, use_te=False),
            vocab_size=config.model.vocab_size,
            max_sequence_length=config.schedule.seq_length,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=False,
        )
