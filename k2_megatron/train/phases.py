# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Phases as the trainer meets them: all checked at the start, the right one built, the next named.

Phases in which only numbers change go on in the same processes. Where the layout, the memory
policy or the model's positions change, the run saves and ends as if stopped; the next start finds
by the checkpoint which phase to build.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from k2_megatron.checkpoint.folder import list_steps
from k2_megatron.checkpoint.manifest import DamagedCheckpointError, read_manifest
from k2_megatron.config.config import Config
from k2_megatron.config.phases import Phase, check_world_size, groups_of, phase_at, phases_of
from k2_megatron.errors import UserError
from k2_megatron.launch.agreement import from_first_rank
from k2_megatron.platform.base import Platform
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.memory_check import MemoryCheck, check_memory
from k2_megatron.train.session import Session


@dataclass(frozen=True, kw_only=True)
class CheckedPhases:
    """The phases of a run, each of which this platform can train.

    Attributes:
        config: of the run; the layout is written out in it where the run is one phase.
        phases: with the layouts written out.
        memory: what is planned of each phase.
    """

    config: Config
    phases: tuple[Phase, ...]
    memory: tuple[MemoryCheck, ...]


def check_phases(config: Config, platform: Platform, world_size: int) -> CheckedPhases:
    """Refuse a run of which any phase cannot be trained: on its first day, not on its last.

    Phases that share their processes share a layout; the one with the largest micro-batch decides.

    Raises:
        UserError: a phase does not fit the platform, its memory or the number of processes.
    """
    check_world_size(config, world_size)
    found: list[Phase] = []
    checks: list[MemoryCheck] = []
    for here in groups_of(phases_of(config)):
        for phase in here:
            platform.check(phase.config)
        check = _check_memory(
            max(here, key=lambda phase: phase.micro_batch_tokens), platform, world_size
        )
        parallel = check.plan.job.config.parallel
        found += [replace(one, config=replace(one.config, parallel=parallel)) for one in here]
        checks += [check] * len(here)
    return CheckedPhases(
        config=config if config.schedule.phases else found[0].config,
        phases=tuple(found),
        memory=tuple(checks),
    )


def phase_to_build(phases: tuple[Phase, ...], folder: RunFolder) -> Phase:
    """The phase in which the newest checkpoint of the run goes on. Collective.

    It is only looked at, not verified: `resume_session` refuses to go on in the wrong phase.
    """
    return phase_at(phases, from_first_rank(lambda: _next_step(folder)))


def describe_phase(session: Session) -> str:
    """Where the session stands, in words."""
    phase, schedule = session.phase, session.config.schedule
    return (
        f"phase {phase.name} ({phase.index + 1} of {len(session.phases)}): steps "
        f"{phase.first_step} to {phase.last_step}, {schedule.global_batch_size} x "
        f"{schedule.seq_length} tokens a step, {session.sizes.num_microbatches} micro-batches"
    )


def describe_handover(session: Session) -> str:
    """What is said where another phase needs other processes."""
    following = phase_at(session.phases, session.last_step_here + 1)
    return (
        f"step {session.last_step_here} of {session.phases[-1].last_step} is done and saved: phase "
        f"{following.name} needs other processes; the same command goes on with it"
    )


def _check_memory(phase: Phase, platform: Platform, world_size: int) -> MemoryCheck:
    try:
        return check_memory(phase.config, platform, world_size)
    except UserError as error:
        if not phase.name:
            raise
        raise UserError(f"phase {phase.name}: {error}") from error


def _next_step(folder: RunFolder) -> int:
    for _, path in sorted(list_steps(folder.checkpoints).items(), reverse=True):
        try:
            return read_manifest(path).step + 1
        except DamagedCheckpointError:
            continue
    return 1
