# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The loop: step, judge, evaluate, report, save, until the last step, a signal or a fault."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from k2_megatron.config.config import Config
from k2_megatron.data.request import DataOrder
from k2_megatron.launch.agreement import from_first_rank
from k2_megatron.launch.signals import StopSignals
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.batches import Batch, Text
from k2_megatron.train.callbacks import CallbackList
from k2_megatron.train.events import NEXT_PHASE
from k2_megatron.train.garbage import GarbageCollection
from k2_megatron.train.guards.guards import Guards
from k2_megatron.train.guards.rollback import roll_back
from k2_megatron.train.guards.saves import GuardedSaver
from k2_megatron.train.guards.spikes import Spike
from k2_megatron.train.measurement import largest_memory, measure_step
from k2_megatron.train.memory_check import MEASURED_AFTER_STEPS, MemoryCheck
from k2_megatron.train.phases import describe_handover, describe_phase
from k2_megatron.train.session import Session
from k2_megatron.train.state import SessionSaver
from k2_megatron.train.step import StepOutcome, evaluate, train_step
from k2_megatron.train.trace import StepTraces

DONE = 0
STOPPED = 3


@dataclass(frozen=True, kw_only=True)
class Run:
    """A session with its text, its folder and those who watch it.

    Attributes:
        data_order: fingerprints of the order of the samples, kept in every checkpoint.
        memory: what the planner expects it to take.
        say: prints on rank 0, nothing elsewhere.
    """

    session: Session
    text: Text
    folder: RunFolder
    data_order: DataOrder
    memory: MemoryCheck
    callbacks: CallbackList
    stop_signals: StopSignals
    say: Callable[[str], None]


def last_step(config: Config) -> int:
    """The step after which this run ends."""
    return config.run.stop_after_step or config.schedule.train_steps


class Loop:
    """Trains from a step on; one object a process."""

    def __init__(self, run: Run, guards: Guards, garbage: GarbageCollection) -> None:
        """Touch nothing yet."""
        self._run, self._guards, self._garbage = run, guards, garbage
        self._session, self._config = run.session, run.session.config
        self._last = min(last_step(self._config), run.session.last_step_here)
        self._hands_over = self._last < last_step(self._config)
        rank = run.session.topology.rank
        self._traces = StepTraces(self._config, run.folder.traces, rank, run.say)
        self._saver = GuardedSaver(
            SessionSaver(run.session, run.folder, run.data_order),
            guards.events,
            run.say,
            max_failed=self._config.checkpoint.max_failed_saves,
        )

    def train(self, start: int) -> int:
        """Train the steps after `start`; the exit code. Collective.

        Raises:
            TrainingStoppedError: too many steps were skipped, or too many spikes came.
            CheckpointError: too many saves failed, or the last one.
        """
        run, guards = self._run, self._guards
        if start >= self._last:
            run.say(
                f"nothing to do: step {start} is done, and the run ends after step {self._last}"
            )
            guards.events.write("ended", step=start)
            return DONE
        self._traces.start(start)
        with guards.watchdog:
            if self._saves_beside_steps(start):
                guards.watchdog.enter("taking host memory for saves in the background")
                self._saver.reserve()
            if start == 0 and self._config.logging.valid_every_steps is not None:
                guards.watchdog.enter("the first validation")
                run.callbacks.on_valid(0, evaluate(run.session, run.text.valid()))
            stopped = self._steps(start)
            enter = partial(guards.watchdog.enter, "the last save")
            enter()
            self._saver.finish(last=True, waiting=enter)
        if stopped is not None:
            name, step = stopped
            run.say(f"stopped by {name} after step {step}; the checkpoint is saved")
            guards.events.write("stopped", step=step, reason=name)
            return STOPPED
        if self._hands_over:
            run.say(describe_handover(run.session))
            guards.events.write("stopped", step=self._last, reason=NEXT_PHASE)
            return STOPPED
        kept = run.folder.checkpoints if self._config.checkpoint.save_at_end else "not saved"
        run.say(f"step {self._last} of {self._config.schedule.train_steps} is done: {kept}")
        guards.events.write("ended", step=self._last)
        return DONE

    def _steps(self, start: int) -> tuple[str, int] | None:
        """Steps until the last one, or until a signal: its name and the step."""
        run, guards, step = self._run, self._guards, start
        batches = run.text.train(start + 1)
        while step < self._last:
            step += 1
            self._enter_phase(step)
            guards.watchdog.enter(f"step {step}")
            batch = next(batches)
            if not guards.passes_over(step):
                if guards.stragglers is not None:
                    guards.stragglers.begin_step()
                began = time.perf_counter()
                with self._traces.step(step):
                    outcome = train_step(self._session, batch, step)
                seconds = time.perf_counter() - began
                spike = guards.judge(step, outcome)
                if spike is not None and (back := self._roll_back(spike)) is not None:
                    step, batches = back, run.text.train(back + 1)
                    continue
                self._report(step, outcome, seconds)
                if outcome.skipped:
                    self._look_at_skips(step, batch)
            if step == start + MEASURED_AFTER_STEPS:
                found = run.memory.compare(largest_memory(run.session))
                if found is not None:
                    run.say(found)
            stopped = run.stop_signals.agreed(run.session.platform.device)
            self._save(step, stopped)
            if stopped and step < self._last:
                return stopped, step
            self._garbage.after(step)
        return None

    def _enter_phase(self, step: int) -> None:
        """Go on in the phase of a step; say so where it begins, and tell the guards."""
        session = self._session.at(step)
        if session.phase.name and session.phase.first_step == step:
            self._run.say(describe_phase(session))
        self._guards.enter(session.phases, step)
        self._session = session

    def _report(self, step: int, outcome: StepOutcome, seconds: float) -> None:
        """Evaluate where it is due, and hand the step to the callbacks where it is logged."""
        run, logging = self._run, self._config.logging
        valid_loss = None
        if self._is_due(step, logging.valid_every_steps):
            self._guards.watchdog.enter(f"the validation after step {step}")
            valid_loss = evaluate(self._session, run.text.valid(step))
            run.callbacks.on_valid(step, valid_loss)
        if valid_loss is not None or self._is_due(step, logging.log_every_steps):
            extra = self._guards.metrics(run.say)
            record = measure_step(self._session, step, outcome, seconds, valid_loss, extra)
            run.callbacks.on_step_end(record)

    def _save(self, step: int, stopped: str | None) -> None:
        """Save where it is due; else look after a save that goes on."""
        stage = f"the save after step {step}"
        self._guards.watchdog.enter(stage)
        at_end = self._config.checkpoint.save_at_end or self._hands_over
        every = self._config.checkpoint.save_every_steps
        due = at_end if step == self._last else self._is_due(step, every)
        if stopped or due:
            self._saver.save(
                step,
                self._guards.state(),
                last=stopped is not None or step == self._last,
                waiting=partial(self._guards.watchdog.enter, stage),
            )
        else:
            self._saver.advance()

    def _saves_beside_steps(self, start: int) -> bool:
        """Whether a save will go on while later steps are done."""
        every = self._config.checkpoint.save_every_steps
        if every is None or not self._config.checkpoint.async_save:
            return False
        return start // every * every + every < self._last

    def _roll_back(self, spike: Spike) -> int | None:
        """Go back to before a spike; the step to go on after, None where there is none."""
        run = self._run
        enter = partial(self._guards.watchdog.enter, f"the rollback after step {spike.last}")
        enter()
        self._saver.finish(waiting=enter)
        enter()
        back = roll_back(
            run.session, run.folder, run.data_order, self._guards, spike, run.say, enter
        )
        if back is not None:
            from_first_rank(lambda: run.callbacks.on_rollback(back))
        return back

    def _look_at_skips(self, step: int, batch: list[Batch]) -> None:
        """End the run with a diagnosis where it is time; a save that goes on is waited for."""
        if self._guards.skipped.in_a_row < self._config.run.max_consecutive_skipped_steps:
            return
        enter = partial(self._guards.watchdog.enter, f"the diagnosis of step {step}")
        enter()
        self._saver.finish(waiting=enter)
        enter()
        self._guards.stop(self._session, step, batch, self._run.folder.checkpoints)

    def _is_due(self, step: int, every: int | None) -> bool:
        """Whether something periodic happens after `step`; it always does after the last one."""
        return step == self._last or (every is not None and step % every == 0)
