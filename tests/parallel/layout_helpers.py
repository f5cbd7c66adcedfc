# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Layouts of models whose layers all take the same time."""

from __future__ import annotations

from k2_megatron.parallel.layout import PipelineLayout
from k2_megatron.parallel.layout_request import Needs, Request
from k2_megatron.parallel.layout_search import place_layers


def even_layout(
    *, num_layers: int, pipeline_size: int, virtual_size: int = 1, num_mtp_layers: int = 0
) -> PipelineLayout:
    """Every layer takes 1, the embedding a half, the loss and each MTP layer 1."""
    times = Needs(layers=(1.0,) * num_layers, embedding=0.5, head=1.0 + num_mtp_layers)
    return place_layers(
        Request(
            pipeline_size=pipeline_size,
            virtual_size=virtual_size,
            times=times,
            num_mtp_layers=num_mtp_layers,
        )
    )
