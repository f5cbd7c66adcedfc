# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What of a configuration a checkpoint belongs to, what describes its layout, and its matrices."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from k2_megatron.config.config import Config
from k2_megatron.config.model import ModelConfig
from k2_megatron.config.schedule import PHASE_MODEL_KEYS
from k2_megatron.model.shape import model_shape
from k2_megatron.parallel.canonical import canonical_shapes

# What may differ in a run that goes on: how the model is trained and how far it looks (annealing
# freezes the router bias, YaRN stretches the context), not what it is.
CHANGEABLE_MODEL_KEYS = frozenset({"preset", "init_method_std", *PHASE_MODEL_KEYS})


def identity(config: Config) -> dict[str, Any]:
    """What must be equal for a run to go on from a checkpoint."""
    return {
        "dtype": config.precision.dtype,
        "optimizer": config.optimizer.type,
        "global_batch_size": config.schedule.global_batch_size,
        **model_identity(config.model),
    }


def model_identity(model: ModelConfig) -> dict[str, Any]:
    """What must be equal for weights to fit a model."""
    return {
        f"model.{name}": value
        for name, value in asdict(model).items()
        if name not in CHANGEABLE_MODEL_KEYS
    }


def layout(config: Config, platform: str) -> dict[str, Any]:
    """Who holds what: for people, and to know whether what belongs to one rank has a rank."""
    parallel = asdict(config.parallel)
    return {"platform": platform, **{f"parallel.{name}": v for name, v in parallel.items()}}


def router_bias_key(model: ModelConfig, layer: int) -> str:
    """The canonical key of a router's selection bias.

    Args:
        model: the model.
        layer: 0-based; MTP layers follow the decoder's.
    """
    if layer < model.num_layers:
        return f"layers.{layer}.router_bias"
    return f"mtp.{layer - model.num_layers}.layer.router_bias"


def model_matrices(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every canonical matrix and every router's selection bias."""
    shapes: dict[str, tuple[int, int]] = {}
    for key, size in canonical_shapes(model_shape(model)).items():
        shapes[key] = size
        if key.endswith(".router"):
            shapes[f"{key}_bias"] = (size[0], 1)
    return shapes
