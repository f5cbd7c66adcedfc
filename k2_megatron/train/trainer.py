# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A run from its configuration to its last checkpoint, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from k2_megatron.checkpoint.folder import Saved
from k2_megatron.config.config import Config
from k2_megatron.config.resolve import resolve_world
from k2_megatron.launch.agreement import agree
from k2_megatron.launch.preflight import check_run_folder
from k2_megatron.launch.process_group import process_group
from k2_megatron.launch.ranks import RankInfo
from k2_megatron.launch.signals import StopSignals
from k2_megatron.platform.base import Platform
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.batches import Text, check_text, verify_text
from k2_megatron.train.callbacks import Callback, CallbackList
from k2_megatron.train.curves import CurvesWriter
from k2_megatron.train.device_monitor import DeviceMonitor
from k2_megatron.train.garbage import GarbageCollection
from k2_megatron.train.jsonl import JsonlWriter
from k2_megatron.train.measurement import largest_memory, measure_step
from k2_megatron.train.memory_check import MEASURED_AFTER_STEPS, MemoryCheck, check_memory
from k2_megatron.train.progress import ProgressPrinter
from k2_megatron.train.session import Session, build_session
from k2_megatron.train.state import SessionSaver, resume_session
from k2_megatron.train.step import evaluate, train_step
from k2_megatron.train.tensorboard import TensorBoardWriter

DONE = 0
STOPPED = 3


@dataclass(frozen=True, kw_only=True)
class Run:
    """A session with its text, its folder and those who watch it.

    Attributes:
        data_order: fingerprint of the order of the samples, kept in every checkpoint.
        memory: what the planner expects it to take.
        say: prints on rank 0, nothing elsewhere.
    """

    session: Session
    text: Text
    folder: RunFolder
    data_order: str
    memory: MemoryCheck
    callbacks: CallbackList
    stop_signals: StopSignals
    say: Callable[[str], None]


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
        UserError: the data, a checkpoint, the platform, its memory or the number of processes does
            not fit.
    """
    resolve_world(config, ranks.world_size)
    platform.check(config)
    memory = check_memory(config, platform, ranks.world_size)
    data_order = check_text(config)
    folder = check_run_folder(config)  # before any rank can have saved
    with process_group(platform, ranks, timeout_seconds=config.run.distributed_timeout_seconds):
        if ranks.rank == 0:
            print(platform.describe())
        agree(lambda: verify_text(config) if ranks.rank == 0 else None)
        session = build_session(config, platform, ranks.world_size)
        run = Run(
            session=session,
            text=Text(session),
            folder=folder,
            data_order=data_order,
            memory=memory,
            callbacks=CallbackList(_callbacks(session, folder), writes=ranks.rank == 0),
            stop_signals=stop_signals,
            say=print if ranks.rank == 0 else _quiet,
        )
        return _train(run)


def _train(run: Run) -> int:
    """Resume where the run stands, train to its end, and leave its curves."""
    session, say = run.session, run.say
    say(f"layout: {session.topology}, {session.sizes.num_microbatches} micro-batches a step")
    say(session.optimizer.describe())
    lock = agree(lambda: run.folder.claim() if session.topology.rank == 0 else None)
    try:
        return _train_alone(run)
    finally:
        if lock is not None:
            lock.close()


def _train_alone(run: Run) -> int:
    """The same, while no other command trains in the run's folder."""
    session, say = run.session, run.say
    resumed = resume_session(session, run.folder, run.data_order)
    start = resumed.step
    for warning in resumed.warnings:
        say(f"warning: {warning}")
    if start:
        say(f"resumed after step {start} from {resumed.path}")
    for note in resumed.notes:
        say(note)
    if session.topology.rank == 0:
        run.folder.start(session.config)
    try:
        agree(lambda: run.callbacks.on_train_start(start))
        with GarbageCollection() as garbage:
            code = _loop(run, start, garbage)
        run.callbacks.on_train_end()
    finally:
        run.callbacks.close()
    _tell_where_the_curves_are(run)
    return code


def _tell_where_the_curves_are(run: Run) -> None:
    """Name what there is to look at; the picture needs a logged step."""
    if run.session.config.logging.tensorboard:
        run.say(f"curves: tensorboard --logdir {run.folder.tensorboard}")
    if run.folder.curves.exists():
        run.say(f"picture: {run.folder.curves}")


def _loop(run: Run, start: int, garbage: GarbageCollection) -> int:
    """Step, evaluate, report and save until the last step or a signal."""
    session, config = run.session, run.session.config
    last = _last_step(config)
    if start >= last:
        run.say(f"nothing to do: step {start} is done, and the run ends after step {last}")
        return DONE
    if start == 0 and config.logging.valid_every_steps is not None:
        run.callbacks.on_valid(0, evaluate(session, run.text.valid()))
    batches = run.text.train(start + 1)
    saver = SessionSaver(session, run.folder, run.data_order)
    for step in range(start + 1, last + 1):
        began = time.perf_counter()
        outcome = train_step(session, next(batches), step)
        seconds = time.perf_counter() - began
        valid_loss = None
        if _is_due(step, config.logging.valid_every_steps, last):
            valid_loss = evaluate(session, run.text.valid())
            run.callbacks.on_valid(step, valid_loss)
        if valid_loss is not None or _is_due(step, config.logging.log_every_steps, last):
            run.callbacks.on_step_end(measure_step(session, step, outcome, seconds, valid_loss))
        if step == start + MEASURED_AFTER_STEPS:
            found = run.memory.compare(largest_memory(session))
            if found is not None:
                run.say(found)
        stopped = run.stop_signals.agreed(session.platform.device)
        if stopped or _save_is_due(config, step, last):
            _tell_warnings(run, saver.save(step))
        else:
            _tell_warnings(run, saver.advance())
        if stopped and step < last:
            _tell_warnings(run, saver.finish())
            run.say(f"stopped by {stopped} after step {step}; the checkpoint is saved")
            return STOPPED
        garbage.after(step)
    _tell_warnings(run, saver.finish())
    kept = run.folder.checkpoints if config.checkpoint.save_at_end else "not saved"
    run.say(f"step {last} of {config.schedule.train_steps} is done: {kept}")
    return DONE


def _tell_warnings(run: Run, saved: list[Saved]) -> None:
    """What could not be removed when checkpoints got their names."""
    for one in saved:
        for warning in one.warnings:
            run.say(f"warning: {warning}")


def _last_step(config: Config) -> int:
    """The step after which this run ends."""
    return config.run.stop_after_step or config.schedule.train_steps


def _is_due(step: int, every: int | None, last: int) -> bool:
    """Whether something periodic happens after `step`; it always does after the last one."""
    return step == last or (every is not None and step % every == 0)


def _save_is_due(config: Config, step: int, last: int) -> bool:
    """Whether a checkpoint follows `step`."""
    if step == last:
        return config.checkpoint.save_at_end
    return _is_due(step, config.checkpoint.save_every_steps, last)


def _callbacks(session: Session, folder: RunFolder) -> list[Callback]:
    """The watchers of the loop, in the order in which they are called."""
    found: list[Callback] = [
        DeviceMonitor(session.platform.device_uuid()),
        ProgressPrinter(_last_step(session.config)),
        JsonlWriter(folder.path),
    ]
    if session.config.logging.tensorboard:
        found.append(TensorBoardWriter(folder.path))
    return [*found, CurvesWriter(folder.path)]


def _quiet(text: str) -> None:
    """Print nothing: rank 0 speaks for all."""
