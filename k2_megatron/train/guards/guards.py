# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that watches a run for faults, and what of it goes into checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from k2_megatron.checkpoint.folder import latest
from k2_megatron.config.config import Config
from k2_megatron.config.phases import Phase, first_step_here, phase_at, reads_on
from k2_megatron.errors import TrainingStoppedError
from k2_megatron.launch.agreement import from_first_rank
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.batches import Batch
from k2_megatron.train.events import EventLog
from k2_megatron.train.guards.diagnosis import diagnose
from k2_megatron.train.guards.findings import explain
from k2_megatron.train.guards.skipped import SkippedSteps
from k2_megatron.train.guards.spikes import Spike, SpikeGuard
from k2_megatron.train.guards.stragglers import Stragglers
from k2_megatron.train.guards.watchdog import Watchdog
from k2_megatron.train.session import Session
from k2_megatron.train.step import StepOutcome


@dataclass(frozen=True, kw_only=True)
class Guards:
    """The watchers of a run on this rank; those that are switched off are None."""

    skipped: SkippedSteps
    spikes: SpikeGuard | None
    stragglers: Stragglers | None
    watchdog: Watchdog
    events: EventLog

    @staticmethod
    def of(session: Session, folder: RunFolder, state: Mapping[str, Any], *, start: int) -> Guards:
        """Build them as configured, with what a checkpoint kept of them.

        Args:
            session: the run.
            folder: its folder.
            state: of the checkpoint the run goes on from; empty for a new run.
            start: which start of the run this is, from 1.
        """
        config, topology = session.config, session.topology
        found = Guards(
            skipped=SkippedSteps(),
            spikes=_spike_guard(config),
            stragglers=_stragglers(session),
            watchdog=Watchdog(
                folder.logs / f"hang_in_start_{start}",
                rank=topology.rank,
                world_size=topology.world_size,
                timeout_seconds=config.run.hang_seconds,
                events=EventLog(folder.path, writes=True),
            ),
            events=EventLog(folder.path, writes=topology.rank == 0),
        )
        if "skipped" in state:
            found.skipped.restore(state["skipped"])
        if found.spikes is not None and "spikes" in state:
            found.spikes.restore(state["spikes"])
        return found

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON data."""
        state: dict[str, Any] = {"skipped": self.skipped.state()}
        if self.spikes is not None:
            state["spikes"] = self.spikes.state()
        return state

    def passes_over(self, step: int) -> bool:
        """Whether the text of a step is left out."""
        return self.spikes is not None and self.spikes.passes_over(step)

    def enter(self, phases: Sequence[Phase], step: int) -> None:
        """Forget what the phase before tells nothing about, where a phase begins with `step`.

        Losses of other corpora or of another length are no measure of those to come. A spike does
        not begin before the phases of these processes: they could not go back to before it.
        """
        phase = phase_at(phases, step)
        if self.spikes is None or phase.index == 0 or step != phase.first_step:
            return
        if not reads_on(phases[phase.index - 1], phase):
            self.spikes.forget(losses=True)
        elif step == first_step_here(phases, step):
            self.spikes.forget(losses=False)

    def judge(self, step: int, outcome: StepOutcome) -> Spike | None:
        """Count a step that was just done; the spike that it completes, if any. Collective."""
        self.skipped.count(skipped=outcome.skipped)
        if outcome.skipped:
            self.events.write("skipped", step=step, in_a_row=self.skipped.in_a_row)
        if self.spikes is None or outcome.skipped:
            return None
        # One rank's loss for all: a last bit that differs must not send some of them back alone.
        loss = from_first_rank(lambda: outcome.loss)
        return self.spikes.judge(step, loss)

    def metrics(self, say: Callable[[str], None]) -> dict[str, float]:
        """Values of a logged step by TensorBoard tag. Collective."""
        found = self.skipped.metrics()
        if self.stragglers is not None:
            found |= self.stragglers.report(say)
        return found

    def stop(
        self, session: Session, step: int, batches: Sequence[Batch], checkpoints: Path
    ) -> NoReturn:
        """End a run that has skipped too many steps in a row, with a diagnosis. Collective.

        Args:
            session: the run.
            step: the last one done.
            batches: its micro-batches.
            checkpoints: where they lie.

        Raises:
            TrainingStoppedError: always.
        """
        found = from_first_rank(lambda: latest(checkpoints))
        saved = "no checkpoint was saved yet" if found is None else f"untouched: {found}"
        text = (
            f"training ends after step {step}: {self.skipped.in_a_row} steps in a row were "
            "skipped, because loss or gradient were not finite (run.max_consecutive_skipped_steps)"
            f"\n{explain(diagnose(session, batches))}\n  last checkpoint, {saved}"
        )
        self.events.write("diagnosis", step=step, text=text)
        raise TrainingStoppedError(text, recorded=True)


def _spike_guard(config: Config) -> SpikeGuard | None:
    run = config.run
    if run.loss_spike_factor is None:
        return None
    return SpikeGuard(
        factor=run.loss_spike_factor, steps=run.loss_spike_steps, window=run.loss_spike_window
    )


def _stragglers(session: Session) -> Stragglers | None:
    logging = session.config.logging
    if logging.straggler_factor is None or session.topology.world_size == 1:
        return None
    return Stragglers(session, factor=logging.straggler_factor, reports=logging.straggler_reports)
