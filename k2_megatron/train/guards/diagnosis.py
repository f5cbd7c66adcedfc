# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where a number that is not finite comes from: the step's micro-batches once more, looked at.

The extra pass runs forward and backward without reducing gradients, so that a rank sees what it
made itself; in the reduced ones a NaN lies on whichever rank owns that part of the bucket.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from k2_megatron.model.attention_layers import transformer_layers
from k2_megatron.train.batches import Batch
from k2_megatron.train.guards.findings import Findings, Output
from k2_megatron.train.session import Session
from k2_megatron.train.step import forward_backward


@dataclass
class _Seen:
    """The first outputs that were not finite, in the order in which modules finished."""

    outputs: list[Output] = field(default_factory=list)


def diagnose(session: Session, batches: Sequence[Batch]) -> list[Findings]:
    """Repeat forward and backward of a step and look at every number. Collective.

    Weights, optimizer and router biases stay as they are; gradients are overwritten.

    Args:
        session: the run.
        batches: this rank's micro-batches of the step.

    Returns:
        What each rank found, in rank order, on all ranks.
    """
    weights = _not_finite(session, gradients=False)
    for chunk in session.model.chunks:
        chunk.train()
        chunk.zero_grad_buffer()
    session.optimizer.zero_grad()
    seen = _Seen()
    with _watched(session, seen), _unreduced(session):
        losses = forward_backward(session, batches, forward_only=False)
    own = Findings(
        host=socket.gethostname(),
        weights=weights,
        output=min(seen.outputs, key=lambda output: output.order, default=None),
        losses=tuple(i for i, loss in enumerate(losses) if not bool(torch.isfinite(loss).all())),
        gradients=_not_finite(session, gradients=True),
    )
    for chunk in session.model.chunks:
        chunk.zero_grad_buffer()
    found: list[Any] = [own] * session.topology.world_size
    dist.all_gather_object(found, own)
    return found


def _not_finite(session: Session, *, gradients: bool) -> tuple[str, ...]:
    """Canonical names of this rank's matrices with a number that is not finite."""
    found: dict[str, None] = {}
    for parameter, entry in session.model.parameters():
        values = parameter.main_grad if gradients else parameter.data  # type: ignore[attr-defined]
        if bool(torch.isfinite(values).all()):
            continue
        matrix = values.reshape(entry.shape)
        for piece in entry.pieces:
            part = matrix[slice(*piece.local_rows), slice(*piece.local_cols)]
            if not bool(torch.isfinite(part).all()):
                found[piece.key] = None
    return tuple(found)


@contextmanager
def _unreduced(session: Session) -> Iterator[None]:
    """Leave every gradient on the rank that made it, unscaled."""
    config = session.model.config
    kept = config.finalize_model_grads_func, config.no_sync_func
    config.finalize_model_grads_func = config.no_sync_func = None
    with ExitStack() as stack:
        for chunk in session.model.chunks:
            stack.enter_context(chunk.no_sync())
        try:
            yield
        finally:
            config.finalize_model_grads_func, config.no_sync_func = kept


@contextmanager
def _watched(session: Session, seen: _Seen) -> Iterator[None]:
    """Look at the output of every module of this rank's chunks."""
    with ExitStack() as stack:
        for order, name, module in _modules(session):
            hook = partial(_look, seen, order, name)
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def _modules(session: Session) -> Iterator[tuple[int, str, torch.nn.Module]]:
    """(place in the forward pass, name, module): embedding, layers, what follows them."""
    layers = transformer_layers(session.model, session.topology)
    inside: set[int] = set()
    for index, layer in layers:
        for name, module in layer.named_modules():
            inside.add(id(module))
            yield index, f"layer {index}" + (f", {name}" if name else ""), module
    for chunk in session.model.modules:
        for name, module in chunk.named_modules():
            if name and id(module) not in inside:
                is_embedding = name.startswith(("embedding", "rotary"))
                yield (-1 if is_embedding else session.model.layout.num_layers), name, module


def _look(seen: _Seen, order: int, name: str, module: Any, inputs: Any, output: Any) -> None:
    """Note an output that is not finite; inner modules finish, and are noted, before outer ones."""
    if len(seen.outputs) >= 64:
        return
    for tensor in _tensors(output):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            seen.outputs.append(Output(order=order, sequence=len(seen.outputs), name=name))
            return


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, tuple | list):
        for item in output:
            yield from _tensors(item)
