# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What is in host memory: room for activations, their slots in a step, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist

from k2_megatron.config.config import Config
from k2_megatron.offload.hooks import watch
from k2_megatron.offload.sizes import PoolSize
from k2_megatron.planner.job import job_of
from k2_megatron.planner.offload import layer_counts, rank_pool, travel_plan
from k2_megatron.train import tags
from k2_megatron.train.session import Session


def schedule_plan(session: Session, plan: Any) -> Any:
    """A plan of a forward, as `build_schedule_plan` made it, that tells when it runs."""
    engine = session.model.offload
    return plan if engine is None else watch(plan, engine)


@contextmanager
def travelling(session: Session, num_microbatches: int) -> Iterator[None]:
    """While the schedule runs forwards and backwards of so many micro-batches."""
    engine = session.model.offload
    if engine is None:
        yield
        return
    parallel, pipeline = session.config.parallel, session.topology.pp
    plan = travel_plan(
        pipeline.rank,
        pipeline.size,
        parallel.virtual_pipeline_model_parallel_size or 1,
        num_microbatches,
        parallel.overlap_moe_expert_parallel_comm,
        layer_counts(session.model.layout, pipeline.rank),
    )
    engine.provide(
        _room(
            session.config,
            session.topology.world_size,
            pipeline.rank,
            num_microbatches,
            session.platform.uses_transformer_engine,
        )
    )
    with engine.running(plan):
        yield


@lru_cache(maxsize=8)
def _room(
    config: Config, world_size: int, pipeline_rank: int, num_microbatches: int, on_gpu: bool
) -> tuple[PoolSize, ...]:
    """The planner's pool of a rank."""
    job = job_of(config, world_size, on_gpu=on_gpu)
    return rank_pool(job, pipeline_rank, num_microbatches=num_microbatches)


def offload_metrics(session: Session) -> dict[str, float]:
    """What travelled in the last step, of the rank with most of each; nothing without offload.

    Collective; waits for the device.
    """
    engine, own = session.model.offload, {}
    if engine is not None:
        traffic, waited = engine.traffic, engine.waited_seconds()
        own = {
            tags.OFFLOAD_SENT: traffic.sent,
            tags.OFFLOAD_FETCHED: traffic.fetched,
            tags.OFFLOAD_STAYED: traffic.stayed,
            tags.OFFLOAD_WAIT_OUT: waited["out"],
            tags.OFFLOAD_WAIT_IN: waited["in"],
            tags.OFFLOAD_HIGH_WATER: engine.high_water_bytes,
        }
    if session.config.optimizer.optimizer_offload_fraction:
        host = session.optimizer.host
        own |= {
            tags.OFFLOAD_STATE: host.moved_bytes,
            tags.OFFLOAD_STATE_WAIT: host.waited_seconds(),
        }
    if not own:
        return {}
    most = torch.tensor(list(own.values()), dtype=torch.float64, device=session.platform.device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return dict(zip(own, most.tolist(), strict=True))
