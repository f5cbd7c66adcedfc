# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A run from its configuration to its last checkpoint, top to bottom."""

from __future__ import annotations

from contextlib import ExitStack

from k2_megatron.config.config import Config
from k2_megatron.config.memory import MemoryConfig
from k2_megatron.errors import TrainingStoppedError, UserError
from k2_megatron.launch.agreement import from_first_rank
from k2_megatron.launch.preflight import check_run_folder
from k2_megatron.launch.process_group import process_group
from k2_megatron.launch.ranks import RankInfo, voice
from k2_megatron.launch.signals import StopSignals
from k2_megatron.planner.text import policy_table
from k2_megatron.platform.base import Platform
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.batches import Text, check_text, verify_text
from k2_megatron.train.callbacks import Callback, CallbackList
from k2_megatron.train.curves import CurvesWriter
from k2_megatron.train.device_monitor import DeviceMonitor
from k2_megatron.train.events import read_events
from k2_megatron.train.garbage import GarbageCollection
from k2_megatron.train.guards.guards import Guards
from k2_megatron.train.jsonl import JsonlWriter
from k2_megatron.train.loop import Loop, Run, last_step
from k2_megatron.train.phases import check_phases, phase_to_build
from k2_megatron.train.progress import ProgressPrinter
from k2_megatron.train.session import Session, build_session
from k2_megatron.train.state import resume_session
from k2_megatron.train.tensorboard import TensorBoardWriter
from k2_megatron.train.trace import check_traces


def train(config: Config, platform: Platform, ranks: RankInfo, stop_signals: StopSignals) -> int:
    """Train, or go on training, as this rank. Collective over all ranks of the run.

    Args:
        config: a configuration from `load_config`.
        platform: prepared for this rank.
        ranks: this rank and their number.
        stop_signals: listens since the process began.

    Returns:
        0 when the last step is done, 3 when a checkpoint is saved and the same command goes on:
        after a signal, or where the next phase needs other processes.

    Raises:
        UserError: the data, a checkpoint, the platform, its memory or the number of processes does
            not fit.
    """
    checked = check_phases(config, platform, ranks.world_size)
    check_traces(config, ranks.world_size)
    data_order = check_text(config)
    folder = check_run_folder(config)  # before any rank can have saved
    with process_group(
        platform.backend,
        ranks,
        timeout_seconds=config.run.distributed_timeout_seconds,
        **platform.process_group_options(),
    ):
        if ranks.rank == 0:
            print(platform.describe())
        from_first_rank(lambda: verify_text(config), doing="reading data.corpora")
        phase = phase_to_build(checked.phases, folder)
        session = build_session(checked.config, platform, ranks.world_size, checked.phases, phase)
        run = Run(
            session=session,
            text=Text(session),
            folder=folder,
            data_order=data_order,
            memory=checked.memory[phase.index],
            callbacks=CallbackList(_callbacks(session, folder), writes=ranks.rank == 0),
            stop_signals=stop_signals,
            say=voice(ranks.rank),
        )
        return _train(run)


def _train(run: Run) -> int:
    """Resume where the run stands, train to its end, and leave its curves."""
    session, say = run.session, run.say
    say(f"layout: {session.topology}, {session.sizes.num_microbatches} micro-batches a step")
    say(session.optimizer.describe())
    if session.config.memory != MemoryConfig():
        say(f"memory policy:\n{policy_table(run.memory.plan.job)}")
    with ExitStack() as held:

        def claim() -> None:
            held.enter_context(run.folder.claim())  # stays here: a lock cannot travel

        from_first_rank(claim, doing=f"{run.folder.lock}")
        return _train_alone(run)


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
    starts = from_first_rank(lambda: _start(run), doing=f"{run.folder.resolved_config}")
    guards = Guards.of(session, run.folder, resumed.guards, start=starts + 1)
    guards.events.start(step=start, world_size=session.topology.world_size)
    try:
        files = f"the measurements in {run.folder.path}"
        from_first_rank(lambda: run.callbacks.on_train_start(start), doing=files)
        with GarbageCollection() as garbage:
            code = Loop(run, guards, garbage).train(start)
        from_first_rank(run.callbacks.on_train_end, doing=files)
    except (UserError, TrainingStoppedError) as error:
        if not getattr(error, "recorded", False):
            guards.events.write("failed", reason=str(error))
        raise
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


def _callbacks(session: Session, folder: RunFolder) -> list[Callback]:
    """The watchers of the loop, in the order in which they are called."""
    found: list[Callback] = [
        DeviceMonitor(session.platform.device_uuid()),
        ProgressPrinter(last_step(session.config)),
        JsonlWriter(folder.path),
    ]
    if session.config.logging.tensorboard:
        found.append(TensorBoardWriter(folder.path))
    return [*found, CurvesWriter(folder.path)]


def _start(run: Run) -> int:
    """Leave the resolved configuration; how often the run has been started before."""
    run.folder.start(run.session.run_config)
    return sum(event["event"] == "start" for event in read_events(run.folder.path))
