# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks do in the tests of MuonClip."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from k2_megatron.errors import TrainingStoppedError
from k2_megatron.parallel.muonclip import optimizer as muonclip_module
from k2_megatron.train.session import Session
from tests.distributed.canonical import Rectangle
from tests.distributed.jobs import build, parameters, steps


def train(
    config_path: str,
    overrides: list[str],
    num_steps: int,
    batch_elements: int | None = None,
) -> dict[str, Any]:
    """Some steps; what was orthogonalised and sent is counted by looking on.

    Args:
        config_path: of the configuration.
        overrides: of it.
        num_steps: to train.
        batch_elements: bound of a batch, small ones force several rounds.
    """
    if batch_elements is not None:
        muonclip_module.BATCH_ELEMENTS = batch_elements
    session = build(config_path, overrides)
    orthogonalised = _count_matrices()
    sent = _count_bytes_sent()
    outcomes = steps(session, 1, num_steps)
    return {
        "parameters": parameters(session.model),
        "momenta": momenta(session),
        "grad_norms": [outcome.grad_norm for outcome in outcomes],
        "metrics": [dict(outcome.metrics) for outcome in outcomes],
        "orthogonalised": orthogonalised,
        "sent": sent,
        "shapes": session.model.shapes,
        "state_bytes": state_bytes(session),
        "rounded": all(
            torch.equal(shard.weights, shard.master.to(shard.weights.dtype))
            for shard in session.optimizer._shards  # type: ignore[attr-defined]
        ),
        "rounds": len(session.optimizer._matrices.placement.rounds),  # type: ignore[attr-defined]
    }


def train_with_a_spoilt_matrix(config_path: str, overrides: list[str]) -> str:
    """A step in which Newton-Schulz fails for one matrix of the last rank: what this rank says."""
    session = build(config_path, overrides)
    if dist.get_rank() == dist.get_world_size() - 1:
        orthogonalise = muonclip_module.orthogonalise

        def spoilt(matrices: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            found = orthogonalise(matrices, **kwargs)
            found[0, 0, 0] = float("nan")
            return found

        muonclip_module.orthogonalise = spoilt
    try:
        steps(session, 1, 1)
    except TrainingStoppedError as error:
        return str(error)
    return "nothing"


def momenta(session: Session) -> list[Rectangle]:
    """This rank's momentum as rectangles of logical matrices."""
    optimizer: Any = session.optimizer
    found = []
    for shard in optimizer._shards:
        if shard.momentum is None:
            continue
        for fragment in shard.fragments(optimizer._assignment):
            first = fragment.begin - shard.begin
            runs = [first + run * fragment.step for run in range(fragment.count)]
            flat = torch.cat([shard.momentum[at : at + fragment.length] for at in runs])
            begin = 0
            for rows, cols in fragment.rectangles:
                shape = (rows[1] - rows[0], cols[1] - cols[0])
                end = begin + shape[0] * shape[1]
                values = flat[begin:end].view(shape).float().cpu().clone()
                found.append((fragment.matrix, rows, cols, values))
                begin = end
    return found


def _count_matrices() -> list[tuple[int, ...]]:
    """The shapes that Newton-Schulz is called with from now on, one entry a matrix."""
    seen: list[tuple[int, ...]] = []
    orthogonalise = muonclip_module.orthogonalise

    def counted(matrices: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen.extend([tuple(matrices.shape[1:])] * len(matrices))
        return orthogonalise(matrices, **kwargs)

    muonclip_module.orthogonalise = counted
    return seen


def _count_bytes_sent() -> list[int]:
    """Bytes of every all-to-all from now on that leave this rank."""
    seen: list[int] = []
    all_to_all = dist.all_to_all_single

    def counted(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("async_op"):  # megatron-core's expert dispatch is synchronous
            _, given, _, sizes = args
            kept = sizes[dist.get_rank(kwargs["group"])]
            seen.append((sum(sizes) - kept) * given.element_size())
        return all_to_all(*args, **kwargs)

    dist.all_to_all_single = counted
    return seen


def state_bytes(session: Session) -> dict[str, int]:
    """Bytes of this rank's optimizer state and elements it stands for, of Muon and of AdamW."""
    optimizer: Any = session.optimizer
    found = {"muon_bytes": 0, "muon_elements": 0}
    for shard in optimizer._shards:
        if shard.momentum is None:
            continue
        own_master = 0 if shard.parameter_view is None else shard.master.nbytes
        found["muon_bytes"] += own_master + shard.momentum.nbytes
        found["muon_elements"] += shard.gradient.numel()
    return found
