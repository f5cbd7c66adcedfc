# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of the offload tests do."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from k2_megatron.model import build as build_module
from k2_megatron.offload.sizes import total_bytes
from k2_megatron.offload.streams import streams_of
from k2_megatron.planner.job import job_of
from k2_megatron.planner.offload import rank_pool
from k2_megatron.platform.select import current_platform
from k2_megatron.train.offload import offload_metrics
from k2_megatron.train.step import evaluate, train_step
from tests.distributed.jobs import build, gradients, parameters, synthetic_batches
from tests.offload.delayed_streams import delayed_streams


def train_varied(
    config_path: str, overrides: list[str], counts: list[int], delayed: bool
) -> dict[str, Any]:
    """Steps of different numbers of micro-batches with an evaluation between each two.

    Args:
        counts: micro-batches of each step, at most those of a global batch.
        delayed: copies come late and leave poison behind.
    """
    if delayed:
        build_module.streams_of = lambda device: delayed_streams(device, dist.get_rank())
    else:
        build_module.streams_of = streams_of
    session = build(config_path, overrides)
    found: dict[str, Any] = {"losses": [], "norms": [], "valid": [], "gradients": [], "metrics": []}
    optimizer_step = session.optimizer.step

    def step_seen() -> Any:
        found["gradients"].append(gradients(session.model))
        return optimizer_step()

    session.optimizer.step = step_seen  # type: ignore[method-assign]
    for step, count in enumerate(counts, start=1):
        batches = synthetic_batches(session.config, session, step)
        outcome = train_step(session, batches[:count], step)
        found["losses"].append(outcome.loss)
        found["norms"].append(outcome.grad_norm)
        found["metrics"].append(offload_metrics(session))
        held_out = synthetic_batches(session.config, session, 100 + step)
        found["valid"].append(evaluate(session, iter([held_out])))
    found["parameters"] = parameters(session.model)
    engine = session.model.offload
    if engine is not None:
        on_gpu = current_platform().name == "cuda"
        job = job_of(session.config, dist.get_world_size(), on_gpu=on_gpu)
        found["pool"] = engine.pool_bytes
        found["high_water"] = engine.high_water_bytes
        found["planned"] = total_bytes(rank_pool(job, session.topology.pp.rank))
        found["traffic"] = vars(engine.traffic)
        found["fetches"] = getattr(engine._streams, "fetches", None)
    return found
