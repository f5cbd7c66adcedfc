# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Back to a checkpoint from before a spike of the loss, within the living process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from k2_megatron.checkpoint.folder import find, remove_from
from k2_megatron.checkpoint.manifest import read_manifest
from k2_megatron.data.request import DataOrder
from k2_megatron.errors import CheckpointError, TrainingStoppedError
from k2_megatron.launch.agreement import from_first_rank
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.guards.guards import Guards
from k2_megatron.train.guards.skipped import SkippedSteps
from k2_megatron.train.guards.spikes import Spike
from k2_megatron.train.session import Session
from k2_megatron.train.state import resume_session


def roll_back(
    session: Session,
    folder: RunFolder,
    data_order: DataOrder,
    guards: Guards,
    spike: Spike,
    say: Callable[[str], None],
    enter: Callable[[], None],
) -> int | None:
    """Load the newest checkpoint from before a spike and pass the spike's steps over. Collective.

    Checkpoints saved within the spike are removed, once the older one is loaded: a restart would go
    on from them. No save may be under way. Everything that decides what follows is in the
    checkpoint and in the data, so that a process that dies on the way here meets the same spike
    again. One that was saved while the guard was off knows no losses: they are learnt anew.

    Args:
        session, folder, data_order, guards: of the run.
        spike: what was seen.
        say: prints on rank 0.
        enter: tells the watchdog that something was done.

    Returns:
        The step after which training goes on; None where there is no checkpoint to go back to.

    Raises:
        TrainingStoppedError: the run has gone back as often as it may.
        CheckpointError: no checkpoint from before the spike is whole, or the newest whole one is of
            an earlier phase that needs other processes; all are left as they are.
        UserError: a checkpoint of the spike cannot be removed.
    """
    assert guards.spikes is not None
    limit = session.config.run.max_rollbacks
    seen = f"spike of the loss: {spike.describe()}"
    if guards.spikes.rollbacks >= limit:
        _refuse(guards, spike, limit)
    oldest = session.first_step_here - 1
    if not from_first_rank(lambda: _has_one(folder, range(oldest, spike.first))):
        say(f"warning: {seen}; no checkpoint from before it to go back to, training goes on")
        guards.events.write("spike", first=spike.first, last=spike.last)
        return None
    session.model.finish_parameter_gather()
    resumed = resume_session(session, folder, data_order, before=spike.first)
    enter()
    problems = from_first_rank(lambda: _remove_from(folder, spike.first))
    enter()
    for warning in (*resumed.warnings, *problems):
        say(f"warning: {warning}")
    guards.skipped.restore(resumed.guards.get("skipped") or SkippedSteps().state())
    guards.spikes.go_back(spike, resumed.guards.get("spikes"))
    say(
        f"{seen}; back to step {resumed.step} ({resumed.path}), and the text of steps "
        f"{spike.first} to {spike.last} is passed over (rollback {guards.spikes.rollbacks} of "
        f"{limit})"
    )
    guards.events.write(
        "rollback", first=spike.first, last=spike.last, to=resumed.step, reason=spike.describe()
    )
    return resumed.step


def _refuse(guards: Guards, spike: Spike, limit: int) -> NoReturn:
    assert guards.spikes is not None
    text = (
        f"spike of the loss: {spike.describe()}; the run has gone back {limit} times "
        "(run.max_rollbacks) and ends. "
        f"Steps passed over: {guards.spikes.describe()}. What to do: look at the text of these "
        "steps, lower schedule.lr, or raise run.loss_spike_factor; the same command goes on "
        "from the last checkpoint"
    )
    guards.events.write("rollback_refused", step=spike.last, text=text)
    raise TrainingStoppedError(text, recorded=True)


def _remove_from(folder: RunFolder, step: int) -> tuple[str, ...]:
    """Remove the checkpoints of `step` and later ones; what could not be removed, and why."""
    try:
        return remove_from(folder.checkpoints, step)[1]
    except OSError as error:
        raise CheckpointError(
            f"{folder.checkpoints}: removing the checkpoints from step {step} on failed: {error}"
        ) from error


def _has_one(folder: RunFolder, steps: range) -> bool:
    """Whether there is a whole checkpoint of a run, not of weights alone, of one of these steps."""
    manifests = [read_manifest(path) for path in find(folder.checkpoints)]
    return any(found.step in steps and not found.weights_only for found in manifests)
