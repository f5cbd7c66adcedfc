# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of the distributed tests do. Each function runs on every rank."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.config.resolve import resolve
from k2_megatron.data.request import DataOrder
from k2_megatron.model.build import Model
from k2_megatron.parallel.flat_shards import flat_shards
from k2_megatron.parallel.geometry import ParameterGeometry
from k2_megatron.parallel.optimizer import StepResult
from k2_megatron.platform.select import current_platform
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.session import Session, build_session
from k2_megatron.train.state import SessionSaver, resume_session
from k2_megatron.train.step import StepOutcome, evaluate, train_step
from tests.distributed.canonical import Rectangle


def build(config_path: str, overrides: list[str]) -> Session:
    """The session of a configuration file on this rank."""
    config = resolve(load_config(config_path, overrides))
    return build_session(config, current_platform(), dist.get_world_size())


def synthetic_batches(config: Config, session: Session, step: int) -> list[dict[str, Any]]:
    """This rank's micro-batches of a global batch that is the same in every layout."""
    schedule = config.schedule
    generator = torch.Generator().manual_seed(1000 + step)
    size = (schedule.global_batch_size, schedule.seq_length + 1)
    text = torch.randint(config.model.vocab_size, size, generator=generator)
    position_ids = torch.arange(schedule.seq_length).expand(schedule.micro_batch_size, -1)
    dp, mbs = session.topology.dp, schedule.micro_batch_size
    batches = []
    for index in range(session.sizes.num_microbatches):
        begin = (index * dp.size + dp.rank) * mbs
        rows = text[begin : begin + mbs]
        batches.append(
            {
                "tokens": rows[:, :-1].contiguous(),
                "labels": rows[:, 1:].contiguous(),
                "loss_mask": torch.ones(mbs, schedule.seq_length),
                "position_ids": position_ids,
            }
        )
    return batches


def steps(session: Session, first: int, last: int) -> list[StepOutcome]:
    """Train from step `first` to step `last`, both included."""
    return [
        train_step(session, synthetic_batches(session.config, session, step), step)
        for step in range(first, last + 1)
    ]


def rectangles(entry: ParameterGeometry, local: torch.Tensor) -> list[Rectangle]:
    """A local parameter (or its gradient) as rectangles of canonical matrices."""
    matrix = local.detach().reshape(entry.shape)
    return [
        (
            piece.key,
            piece.rows,
            piece.cols,
            matrix[slice(*piece.local_rows), slice(*piece.local_cols)].float().cpu().clone(),
        )
        for piece in entry.pieces
    ]


def parameters(model: Model) -> list[Rectangle]:
    """Every parameter of this rank."""
    model.finish_parameter_gather()
    return [
        rectangle
        for parameter, entry in model.parameters()
        for rectangle in rectangles(entry, parameter.data)
    ]


def gradients(model: Model) -> list[Rectangle]:
    """Every gradient of this rank, put together from the data-parallel ranks' shards."""
    entries = {id(parameter): entry for parameter, entry in model.parameters()}
    found = []
    for shard in flat_shards(model.chunks):
        full = torch.zeros(shard.parameter.numel(), device=shard.gradient.device)
        full[shard.begin : shard.end] = shard.gradient
        dist.all_reduce(full, group=shard.group)
        found += rectangles(entries[id(shard.parameter)], full)
    return found


def router_biases(session: Session) -> dict[int, list[float]]:
    """Selection biases of this rank's layers."""
    return session.router_bias.biases()


def train(config_path: str, overrides: list[str], num_steps: int) -> dict[str, Any]:
    """First-step gradients before clipping, losses and norms, and parameters after some steps."""
    session = build(config_path, overrides)
    initial = parameters(session.model)
    first_gradients: list[Rectangle] = []
    optimizer_step = session.optimizer.step

    def step_seen() -> StepResult:
        """Clipping scales the buckets in place (distrib_optimizer.py:2419): look before it."""
        first_gradients.extend(gradients(session.model))
        session.optimizer.step = optimizer_step  # type: ignore[method-assign]
        return optimizer_step()

    session.optimizer.step = step_seen  # type: ignore[method-assign]
    outcomes = steps(session, 1, num_steps)
    return {
        "initial": initial,
        "gradients": first_gradients,
        "parameters": parameters(session.model),
        "biases": router_biases(session),
        "loads": session.router_bias.loads(),
        "losses": [outcome.loss for outcome in outcomes],
        "grad_norms": [outcome.grad_norm for outcome in outcomes],
        "rates": [outcome.lr for outcome in outcomes],
        "decays": sorted({group["weight_decay"] for group in session.optimizer.param_groups}),
        "shapes": session.model.shapes,
    }


def train_and_save(
    config_path: str, overrides: list[str], first: int, last: int, save_after: int | None
) -> dict[str, Any]:
    """Train from `first` (after a resume, if it is not 1) to `last`; save after a step if asked."""
    session = build(config_path, overrides)
    folder = RunFolder.of(session.config)
    if first > 1:
        resumed = resume_session(session, folder, DataOrder(((0, "the data order"),)))
        assert (resumed.step, resumed.warnings) == (first - 1, ())
    saver = SessionSaver(session, folder, DataOrder(((0, "the data order"),)))
    outcomes = []
    for step in range(first, last + 1):
        outcomes += steps(session, step, step)
        if step == save_after:
            saver.save(step)
        else:
            saver.advance()
    saver.finish()
    return {
        "losses": [outcome.loss for outcome in outcomes],
        "parameters": parameters(session.model),
        "biases": router_biases(session),
    }


def skipped_step(config_path: str, overrides: list[str]) -> dict[str, Any]:
    """Three steps, the second with an infinite gradient on one rank."""
    session = build(config_path, overrides)
    outcomes = steps(session, 1, 1)
    before, bias_before = _numbers(session), router_biases(session)
    poison = session.model.modules[0].decoder.final_layernorm.weight
    handle = poison.register_hook(lambda gradient: gradient + torch.inf)
    outcomes += steps(session, 2, 2)
    handle.remove()
    after, bias_after = _numbers(session), router_biases(session)
    outcomes += steps(session, 3, 3)
    return {
        "skipped": [outcome.skipped for outcome in outcomes],
        "unchanged": all(map(torch.equal, before, after)),
        "bias_unchanged": bias_before == bias_after,
        "moved_after": not all(map(torch.equal, after, _numbers(session))),
    }


def _numbers(session: Session) -> list[torch.Tensor]:
    """Copies of all weights and all optimizer state."""
    found = [parameter.detach().clone() for parameter, _ in session.model.parameters()]
    for state in session.optimizer.shard_states():
        found += [values.clone() for values in state.tensors.values()]
    return found


def train_with_evaluation(
    config_path: str, overrides: list[str], evaluations: int
) -> dict[str, Any]:
    """Three steps, after each of which held-out batches are evaluated."""
    session = build(config_path, overrides)
    outcomes, valid_losses = [], []
    for step in range(1, 4):
        outcomes += steps(session, step, step)
        held_out = [
            synthetic_batches(session.config, session, 100 + index) for index in range(evaluations)
        ]
        if held_out:
            valid_losses.append(evaluate(session, iter(held_out)))
    return {
        "losses": [outcome.loss for outcome in outcomes],
        "valid_losses": valid_losses,
        "loads": session.router_bias.loads(),
        "biases": router_biases(session),
    }


def softmax_scale(config_path: str, overrides: list[str]) -> float:
    """What the first layer's attention multiplies its scores with."""
    session = build(config_path, overrides)
    return float(session.model.modules[0].decoder.layers[0].self_attention.softmax_scale)


def rank_and_size() -> tuple[int, int]:
    """This rank and the number of ranks."""
    return dist.get_rank(), dist.get_world_size()


def fail_on(rank: int, text: str) -> None:
    """Raise on one rank."""
    if dist.get_rank() == rank:
        raise ValueError(text)


def hang_on(rank: int) -> None:
    """Never return on one rank."""
    while dist.get_rank() == rank:
        time.sleep(0.1)
