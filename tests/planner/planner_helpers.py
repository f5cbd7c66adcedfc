# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Configurations for the planner's tests, made without a file."""

from __future__ import annotations

from typing import Any

from k2_megatron.config.config import Config
from k2_megatron.config.data import DataConfig
from k2_megatron.config.model import ModelConfig
from k2_megatron.config.optimizer import OptimizerConfig
from k2_megatron.config.parallel import ParallelConfig
from k2_megatron.config.presets import model_from_preset
from k2_megatron.config.resolve import resolve
from k2_megatron.config.run import RunConfig
from k2_megatron.config.schedule import ScheduleConfig

GIB, GB = 2**30, 1e9


def config_of(
    model: ModelConfig | None = None,
    *,
    optimizer: str = "muonclip",
    batch: int = 16384,
    **parallel: Any,
) -> Config:
    """A bf16 run of K2, or of another model, at sequence 4096 and micro-batch 1."""
    return resolve(
        Config(
            run=RunConfig(name="planned"),
            model=model or model_from_preset("kimi-k2"),
            parallel=ParallelConfig(**parallel),
            optimizer=OptimizerConfig(type=optimizer),  # type: ignore[arg-type]
            schedule=ScheduleConfig(
                train_steps=1000, global_batch_size=batch, lr_wsd_decay_steps=100
            ),
            data=DataConfig(corpora=()),
        )
    )


def k2_cluster(**parallel: Any) -> Config:
    """K2 at PP16 and EP16, the report's layout."""
    degrees = {"pipeline_model_parallel_size": 16, "expert_model_parallel_size": 16}
    return config_of(**{**degrees, **parallel})


def k2_slice(num_layers: int = 2, **parallel: Any) -> Config:
    """What one of K2's GPUs computes, with few layers."""
    model = model_from_preset(
        "kimi-k2",
        num_layers=num_layers,
        first_k_dense_replace=0,
        num_experts=24,
        vocab_size=32768,
    )
    return config_of(model, batch=4, **parallel)
