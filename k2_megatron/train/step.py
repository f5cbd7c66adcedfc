# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""One training step and one evaluation: batch -> pipeline schedule -> gradients -> update."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_batch_on_this_cp_rank

from k2_megatron.model.leftovers import forget_forward
from k2_megatron.parallel.flat_shards import flat_shards
from k2_megatron.parallel.topology import Topology
from k2_megatron.train.batches import Batch
from k2_megatron.train.offload import schedule_plan, travelling
from k2_megatron.train.session import Session


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """Result of one training step, the same on all ranks but for times.

    metrics: what the optimizer says of the step, by TensorBoard tag.
    """

    loss: float
    grad_norm: float
    skipped: bool
    lr: float
    metrics: Mapping[str, float]


def train_step(session: Session, batches: Sequence[Batch], step: int) -> StepOutcome:
    """Train on one global batch. Collective.

    Args:
        session: the run.
        batches: this data-parallel rank's micro-batches, tensors [b, s].
        step: 1-based number of the step, which decides the learning rate; of the session's phase.
    """
    for chunk in session.model.chunks:
        chunk.train()
        chunk.zero_grad_buffer()
    session.optimizer.zero_grad()
    losses = forward_backward(session, batches, forward_only=False)
    rate = session.set_rates(step)
    loss = _global_mean(losses, session)
    if not math.isfinite(loss):
        _spoil_gradients(session)
    result = session.optimizer.step()
    if not result.skipped:
        session.router_bias.update()
    return StepOutcome(
        loss=loss,
        grad_norm=result.grad_norm,
        skipped=result.skipped,
        lr=rate,
        metrics=result.metrics,
    )


def _spoil_gradients(session: Session) -> None:
    """Let a loss that is not finite skip the step although its gradient may be finite.

    The norm carries it to all ranks, so that none updates alone even where only one saw the loss.
    """
    for shard in flat_shards(session.model.chunks):
        shard.gradient.fill_(math.nan)


@torch.no_grad()
def evaluate(session: Session, batches: Iterator[Sequence[Batch]]) -> float:
    """Mean loss over global batches of held-out text. Collective."""
    for chunk in session.model.chunks:
        chunk.eval()
    losses: list[torch.Tensor] = []
    for global_batch in batches:
        losses += forward_backward(session, global_batch, forward_only=True)
    return _global_mean(losses, session)


def forward_backward(
    session: Session, batches: Sequence[Batch], *, forward_only: bool
) -> list[torch.Tensor]:
    """Drive megatron-core's schedule over this rank's micro-batches. Collective.

    Returns:
        The micro-batch losses, scalars, on the last pipeline stage; elsewhere nothing.
    """
    chunks: list[Any] = session.model.chunks
    iterators = [iter(batches) for _ in chunks]
    with nullcontext() if forward_only else travelling(session, len(batches)):
        outputs = get_forward_backward_func()(
            forward_step_func=partial(_forward_step, session),
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=len(batches),
            seq_length=session.config.schedule.seq_length,
            micro_batch_size=session.config.schedule.micro_batch_size,
            forward_only=forward_only,
        )
    for chunk in chunks:
        forget_forward(chunk)
    return [output["loss"] for output in outputs]


def _forward_step(
    session: Session, iterator: Iterator[Batch], model: Any, return_schedule_plan: bool = False
) -> Any:
    """One micro-batch through one chunk, as megatron-core's schedules call it.

    The combined schedule of overlapped expert communication asks for a plan of the forward pass
    in place of its output, and hands over the bare GPTModel.
    """
    device = session.platform.device
    batch = {key: value.to(device, non_blocking=True) for key, value in next(iterator).items()}
    if session.topology.cp.size > 1:
        batch = get_batch_on_this_cp_rank(batch)
    forward = model.build_schedule_plan if return_schedule_plan else model
    # Stages between the first and the last get no text and need none.
    output = forward(
        batch.get("tokens"), batch.get("position_ids"), None, labels=batch.get("labels")
    )
    if return_schedule_plan:
        output = schedule_plan(session, output)
    return output, partial(token_loss, batch.get("loss_mask"))


def token_loss(
    mask: torch.Tensor | None, per_token: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    """What the schedule differentiates: the sum over counted tokens, and their number.

    It divides the one by the other. A mean in place of both it would take for a local sum over a
    global count, and multiply by the context-parallel size (schedules.py:268).

    Args:
        mask: 1 where a token counts, [b, s].
        per_token: cross-entropy, [b, s].

    Returns:
        Sum (scalar), number of tokens (scalar, int32), and the mean for the log.
    """
    assert mask is not None
    total, count = (per_token.float() * mask.float()).sum(), mask.sum().to(torch.int32)
    return total, count, {"loss": total.detach() / count.clamp(min=1)}


def _global_mean(losses: Sequence[torch.Tensor], session: Session) -> float:
    """Average micro-batch losses of the last stage over data-parallel ranks, known to all."""
    topology: Topology = session.topology
    total = torch.zeros(2, dtype=torch.float64, device=session.platform.device)
    if losses:
        total[0] = torch.stack([loss.double() for loss in losses]).sum()
        total[1] = len(losses)
    if topology.is_last_stage:
        dist.all_reduce(total, group=topology.dp_cp.group)
    if topology.pp.size > 1:
        last = dist.get_process_group_ranks(topology.pp.group)[-1]
        dist.broadcast(total, src=last, group=topology.pp.group)
    return float(total[0] / total[1])
