# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Whether every phase of a run fits: one that fits on the first day may not on the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from k2_megatron.config.config import Config
from k2_megatron.config.phases import Phase, last_step_here, phases_of
from k2_megatron.errors import TopologyError
from k2_megatron.planner.hardware import OUTSIDE_ALLOCATOR_BYTES
from k2_megatron.planner.job import Job
from k2_megatron.planner.place import within_memory
from k2_megatron.planner.plan import plan_ranks
from k2_megatron.planner.text import gib, table


@dataclass(frozen=True, kw_only=True)
class PhasePeak:
    """The memory of one phase.

    Attributes:
        job: what is planned of it; or why the number of GPUs cannot run it.
        peak_bytes: of the fullest rank; None where it cannot run.
    """

    phase: Phase
    job: Job | TopologyError
    peak_bytes: float | None

    @property
    def fits(self) -> bool:
        """Every rank fits."""
        if self.peak_bytes is None or isinstance(self.job, TopologyError):
            return False
        return self.peak_bytes <= self.job.gpu.memory_bytes - OUTSIDE_ALLOCATOR_BYTES


def peaks_of_phases(config: Config, make_job: Callable[[Config], Job]) -> list[PhasePeak]:
    """Every phase in the layout in which it would be trained.

    As in the trainer, phases that share their processes share a layout, and the one with the
    largest micro-batch decides.

    Args:
        config: of the run.
        make_job: the job of a phase's configuration; may raise TopologyError.
    """
    phases = phases_of(config)
    found: list[PhasePeak] = []
    while len(found) < len(phases):
        last = last_step_here(phases, phases[len(found)].first_step)
        here = [phase for phase in phases[len(found) :] if phase.last_step <= last]
        jobs = [_try(make_job, phase.config) for phase in here]
        possible = [job for job in jobs if isinstance(job, Job)]
        parallel = None
        if possible:
            parallel = within_memory(max(possible, key=lambda job: job.tokens)).config.parallel
        for phase, job in zip(here, jobs, strict=True):
            if isinstance(job, Job) and parallel is not None:
                job = replace(job, config=replace(job.config, parallel=parallel))
                peak = max(rank.total_bytes for rank in plan_ranks(job))
                found.append(PhasePeak(phase=phase, job=job, peak_bytes=peak))
            else:
                found.append(PhasePeak(phase=phase, job=job, peak_bytes=None))
    return found


def job_to_plan(peak: PhasePeak) -> Job:
    """The phase's job.

    Raises:
        TopologyError: the number of GPUs cannot run it.
    """
    if isinstance(peak.job, TopologyError):
        raise peak.job
    return peak.job


def peaks_text(peaks: Sequence[PhasePeak]) -> str:
    """A line for each phase."""
    jobs = [one.job for one in peaks if isinstance(one.job, Job)]
    where = f"{jobs[0].num_gpus} x {jobs[0].gpu.name}" if jobs else ""
    return table([[one.phase.name, *_row(one), where] for one in peaks], left=2)


def _row(peak: PhasePeak) -> tuple[str, str]:
    if isinstance(peak.job, TopologyError) or peak.peak_bytes is None:
        return "CANNOT RUN", ""
    usable = gib(peak.job.gpu.memory_bytes - OUTSIDE_ALLOCATOR_BYTES)
    verdict = "fits" if peak.fits else "DOES NOT FIT"
    return verdict, f"peak {gib(peak.peak_bytes)} of {usable} GiB"


def _try(make_job: Callable[[Config], Job], config: Config) -> Job | TopologyError:
    try:
        return make_job(config)
    except TopologyError as error:
        return error
