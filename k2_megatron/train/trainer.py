# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A run from its configuration to its last checkpoint, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from k2_megatron.config.config import Config
from k2_megatron.config.resolve import resolve_world
from k2_megatron.launch.preflight import check_run_folder
from k2_megatron.launch.ranks import RankInfo
from k2_megatron.launch.signals import StopSignals
from k2_megatron.parallel import megatron_state
from k2_megatron.planner.flops import model_flops_per_token
from k2_megatron.platform.base import Platform
from k2_megatron.train.batches import Text, check_text
from k2_megatron.train.callbacks import Callback, CallbackList
from k2_megatron.train.curves import CurvesWriter
from k2_megatron.train.device_monitor import DeviceMonitor
from k2_megatron.train.jsonl import JsonlWriter
from k2_megatron.train.metrics import StepRecord
from k2_megatron.train.progress import ProgressPrinter
from k2_megatron.train.routing import gather_routing
from k2_megatron.train.run_folder import RunFolder
from k2_megatron.train.session import Session, build_session
from k2_megatron.train.state import resume_session, save_session
from k2_megatron.train.step import StepOutcome, evaluate, train_step
from k2_megatron.train.tensorboard import TensorBoardWriter

DONE = 0
STOPPED = 3


def train(config: Config, platform: Platform, ranks: RankInfo, stop_signals: StopSignals) -> int:
    """Train, or go on training, as this rank. Collective over all ranks of the run.

    Args:
        config: a configuration from `load_config`.
        platform: prepared for this rank.
        ranks: this rank and their number.
        stop_signals: listens since the process began.

    Returns:
        0 when the last step is done, 3 when a signal stopped the run and a checkpoint is saved.

    Raises:
        UserError: the data, a checkpoint, the platform or the number of processes does not fit.
    """
    resolve_world(config, ranks.world_size)
    platform.check(config)
    fingerprint = check_text(config, verify_index=ranks.rank == 0)
    folder = check_run_folder(config)  # before any rank can have saved
    with _process_group(config, platform, ranks):
        say: Callable[[str], None] = print if ranks.rank == 0 else _quiet
        say(platform.describe())
        session = build_session(config, platform, ranks.world_size)
        say(f"layout: {session.topology}, {session.sizes.num_microbatches} micro-batches a step")
        text = Text(session)
        start, warnings = resume_session(session, folder, fingerprint)
        for warning in warnings:
            say(f"warning: {warning}")
        if start:
            say(f"resumed after step {start}")
        if ranks.rank == 0:
            folder.start(config)
        callbacks = CallbackList(_callbacks(config, platform, folder), writes=ranks.rank == 0)
        try:
            callbacks.on_train_start(start)
            code = _loop(session, text, callbacks, folder, fingerprint, start, stop_signals, say)
            callbacks.on_train_end()
        finally:
            callbacks.close()
        if config.logging.tensorboard:
            say(f"curves: tensorboard --logdir {folder.tensorboard}, or {folder.path}/curves.png")
        return code


def _loop(
    session: Session,
    text: Text,
    callbacks: CallbackList,
    folder: RunFolder,
    fingerprint: str,
    start: int,
    stop_signals: StopSignals,
    say: Callable[[str], None],
) -> int:
    """Step, evaluate, report and save until the last step or a signal."""
    config = session.config
    last = config.run.stop_after_step or config.schedule.train_steps
    if start >= last:
        say(f"nothing to do: step {start} is done, and the run ends after step {last}")
        return DONE
    batches = text.train(start + 1)
    for step in range(start + 1, last + 1):
        began = time.perf_counter()
        outcome = train_step(session, next(batches), step)
        seconds = time.perf_counter() - began
        valid_loss = None
        if _is_due(step, config.logging.valid_every_steps, last):
            valid_loss = evaluate(session, text.valid())
            callbacks.on_valid(step, valid_loss)
        if valid_loss is not None or _is_due(step, config.logging.log_every_steps, last):
            callbacks.on_step_end(_record(session, step, outcome, seconds, valid_loss))
        stopped = stop_signals.agreed(session.platform.device)
        if stopped or _save_is_due(config, step, last):
            for warning in save_session(session, folder, step, fingerprint).warnings:
                say(f"warning: {warning}")
        if stopped and step < last:
            say(f"stopped by {stopped} after step {step}; the checkpoint is saved")
            return STOPPED
    say(f"step {last} of {config.schedule.train_steps} is done: {folder.checkpoints}")
    return DONE


def _is_due(step: int, every: int | None, last: int) -> bool:
    """Whether something periodic happens after `step`; it always does after the last one."""
    return step == last or (every is not None and step % every == 0)


def _save_is_due(config: Config, step: int, last: int) -> bool:
    """Whether a checkpoint follows `step`."""
    if step == last:
        return config.checkpoint.save_at_end
    return _is_due(step, config.checkpoint.save_every_steps, last)


def _record(
    session: Session, step: int, outcome: StepOutcome, seconds: float, valid_loss: float | None
) -> StepRecord:
    """The measurements of a logged step, reduced over ranks. Collective."""
    config = session.config
    tokens = config.schedule.global_batch_size * config.schedule.seq_length
    load, bias = gather_routing(session)
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
        consumed_tokens=step * tokens,
        memory_bytes=_largest_memory(session),
        valid_loss=valid_loss,
        expert_load=load,
        expert_bias=bias,
    )


def _largest_memory(session: Session) -> int | None:
    """Peak device memory of the fullest rank, bytes. Collective."""
    own = session.platform.peak_memory_bytes()
    if own is None:
        return None
    largest = torch.tensor(own, device=session.platform.device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def _callbacks(config: Config, platform: Platform, folder: RunFolder) -> list[Callback]:
    """The watchers of the loop, in the order in which they are called."""
    last = config.run.stop_after_step or config.schedule.train_steps
    found: list[Callback] = [
        DeviceMonitor(platform.device_uuid()),
        ProgressPrinter(last),
        JsonlWriter(folder.path),
    ]
    if config.logging.tensorboard:
        found.append(TensorBoardWriter(folder.path))
    return [*found, CurvesWriter(folder.path)]


@contextmanager
def _process_group(config: Config, platform: Platform, ranks: RankInfo) -> Iterator[None]:
    """torch.distributed for the length of the run."""
    platform.prepare(ranks.local_rank)
    dist.init_process_group(
        platform.backend,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=config.run.distributed_timeout_seconds),
        **platform.process_group_options(),
    )
    try:
        yield
        dist.barrier()
    finally:
        megatron_state.destroy()
        dist.destroy_process_group()


def _quiet(text: str) -> None:
    """Print nothing: rank 0 speaks for all."""
