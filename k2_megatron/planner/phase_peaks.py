# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Whether every phase of a run fits: one that fits on the first day may not on the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from k2_megatron.config.config import Config
from k2_megatron.config.phases import Phase, groups_of, phases_of
from k2_megatron.errors import TopologyError
from k2_megatron.planner.job import Job
from k2_megatron.planner.place import within_memory
from k2_megatron.planner.plan import Plan, RankPlan, finish_plan, peak_of, plan_ranks
from k2_megatron.planner.text import gib, table


@dataclass(frozen=True, kw_only=True)
class PhasePeak:
    """The memory of one phase.

    Attributes:
        job: what is planned of it; or why the number of GPUs cannot run it.
        ranks: by pipeline rank; empty where it cannot run.
    """

    phase: Phase
    job: Job | TopologyError
    ranks: tuple[RankPlan, ...] = ()

    @property
    def peak_bytes(self) -> float | None:
        """Of the fullest rank; None where it cannot run."""
        return peak_of(self.ranks) if self.ranks else None

    @property
    def fits(self) -> bool:
        """Every rank fits."""
        if isinstance(self.job, TopologyError):
            return False
        return peak_of(self.ranks) <= self.job.usable_bytes

    def plan(self) -> Plan:
        """The whole plan of the phase.

        Raises:
            TopologyError: the number of GPUs cannot run it.
        """
        if isinstance(self.job, TopologyError):
            raise self.job
        return finish_plan(self.job, self.ranks, place_matrices=True)


def peaks_of_phases(config: Config, make_job: Callable[[Config], Job]) -> list[PhasePeak]:
    """Every phase in the layout in which it would be trained.

    As in the trainer, phases that share their processes share a layout, and the one with the
    largest micro-batch decides.

    Args:
        config: of the run.
        make_job: the job of a phase's configuration; may raise TopologyError.
    """
    found: list[PhasePeak] = []
    for here in groups_of(phases_of(config)):
        jobs = [_try(make_job, phase.config) for phase in here]
        possible = [job for job in jobs if isinstance(job, Job)]
        parallel = None
        if possible:
            parallel = within_memory(max(possible, key=lambda job: job.tokens)).config.parallel
        for phase, job in zip(here, jobs, strict=True):
            if isinstance(job, Job) and parallel is not None:
                job = replace(job, config=replace(job.config, parallel=parallel))
                found.append(PhasePeak(phase=phase, job=job, ranks=plan_ranks(job)))
            else:
                found.append(PhasePeak(phase=phase, job=job))
    return found


def peaks_text(peaks: Sequence[PhasePeak]) -> str:
    """A line for each phase."""
    jobs = [one.job for one in peaks if isinstance(one.job, Job)]
    where = f"{jobs[0].num_gpus} x {jobs[0].gpu.name}" if jobs else ""
    return table([[one.phase.name, *_row(one), where] for one in peaks], left=2)


def _row(peak: PhasePeak) -> tuple[str, str]:
    if isinstance(peak.job, TopologyError):
        return "CANNOT RUN", ""
    verdict = "fits" if peak.fits else "DOES NOT FIT"
    return verdict, f"peak {gib(peak_of(peak.ranks))} of {gib(peak.job.usable_bytes)} GiB"


def _try(make_job: Callable[[Config], Job], config: Config) -> Job | TopologyError:
    try:
        return make_job(config)
    except TopologyError as error:
        return error
