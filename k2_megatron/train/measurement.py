# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a logged step measured, put together from all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist

from k2_megatron.planner.flops import model_flops_per_token
from k2_megatron.train.metrics import StepRecord
from k2_megatron.train.offload import offload_metrics
from k2_megatron.train.session import Session
from k2_megatron.train.step import StepOutcome

ByLayer = dict[int, list[float]]


def measure_step(
    session: Session,
    step: int,
    outcome: StepOutcome,
    seconds: float,
    valid_loss: float | None,
    extra: Mapping[str, float],
) -> StepRecord:
    """The measurements of a logged step, reduced over ranks. Collective.

    Args:
        session: the run.
        step: 1-based.
        outcome: of `train_step`.
        seconds: that it took on this rank.
        valid_loss: measured after it, if any.
        extra: further values by TensorBoard tag.
    """
    config = session.config
    phase = session.phase
    tokens = phase.step_tokens
    load, bias = _gather_routing(session)
    return StepRecord(
        step=step,
        loss=outcome.loss,
        lr=outcome.lr,
        grad_norm=outcome.grad_norm,
        tokens=tokens,
        step_seconds=seconds,
        skipped=outcome.skipped,
        model_flops=tokens * model_flops_per_token(config.model, config.schedule.seq_length),
        world_size=session.topology.world_size,
        consumed_tokens=phase.consumed_after(step)[1],
        phase=phase.name or None,
        phase_number=phase.index + 1,
        memory_bytes=largest_memory(session),
        valid_loss=valid_loss,
        expert_load=load,
        expert_bias=bias,
        extra={**outcome.metrics, **offload_metrics(session), **extra},
    )


def largest_memory(session: Session) -> int | None:
    """Peak device memory of the fullest rank, bytes. Collective."""
    own = session.platform.peak_memory_bytes()
    if own is None:
        return None
    largest = torch.tensor(own, device=session.platform.device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def _gather_routing(session: Session) -> tuple[dict[int, list[int]] | None, ByLayer | None]:
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
