# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Expert loads and router biases of the whole model, gathered from the pipeline stages."""

from __future__ import annotations

import torch.distributed as dist

from k2_megatron.train.session import Session

ByLayer = dict[int, list[float]]


def gather_routing(session: Session) -> tuple[dict[int, list[int]] | None, ByLayer | None]:
    """Loads of the last step and biases by layer index; (None, None) without routed layers.

    Collective over the pipeline ranks; each layer's load is already a sum over the global batch.
    """
    own = (session.router_bias.loads(), session.router_bias.biases())
    pipeline = session.topology.pp
    stages: list[tuple[ByLayer, ByLayer]] = [own] * pipeline.size
    if pipeline.size > 1:
        dist.all_gather_object(stages, own, group=pipeline.group)
    loads = {
        layer: [round(count) for count in row]
        for stage, _ in stages
        for layer, row in stage.items()
    }
    biases = {layer: row for _, stage in stages for layer, row in stage.items()}
    return (dict(sorted(loads.items())) or None), (dict(sorted(biases.items())) or None)
