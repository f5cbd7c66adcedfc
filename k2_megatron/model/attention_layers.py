# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""This rank's transformer layers with their global indices, and the core attentions in them."""

from __future__ import annotations

from typing import Any

import torch

from k2_megatron.model.build import Model
from k2_megatron.parallel.max_logits import MaxLogits, RecordedAttention
from k2_megatron.parallel.topology import Topology


def transformer_layers(model: Model, topology: Topology) -> list[tuple[int, Any]]:
    """The layers of this rank's chunks with their global 0-based indices.

    MTP layers follow the decoder's; of theirs it is the transformer layer inside.
    """
    found: list[tuple[int, Any]] = []
    stages = model.layout.chunks(topology.pp.rank)
    for module, stage in zip(model.modules, stages, strict=True):
        found += zip(stage.layers, module.decoder.layers, strict=True)
        if stage.mtp_layers:
            first = model.layout.num_layers
            found += [
                (first + index, layer.transformer_layer)
                for index, layer in zip(stage.mtp_layers, module.mtp.layers, strict=True)
            ]
    return found


def recorded_attentions(model: Model, topology: Topology) -> list[RecordedAttention]:
    """This rank's core attentions, which record their largest logits once they are given a row."""
    return [
        RecordedAttention(index=index, core_attention=layer.self_attention.core_attention)
        for index, layer in transformer_layers(model, topology)
    ]


def record_max_logits(model: Model, topology: Topology, device: torch.device) -> MaxLogits:
    """Let every core attention of this rank record its largest logits in training.

    Transformer Engine's can where the model was built with `log_max_attention_logit`.
    """
    return MaxLogits(
        recorded_attentions(model, topology),
        num_layers=model.layout.num_layers + (model.config.mtp_num_layers or 0),
        num_heads=model.config.num_attention_heads,
        topology=topology,
        device=device,
    )
