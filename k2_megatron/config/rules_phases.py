# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Rules about `schedule.phases`. Each is named for what it refuses.

What a phase's changes do to the rest of the configuration is checked by all other rules: each
phase's configuration goes through them (k2_megatron/config/rules.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

from k2_megatron.config.config import Config
from k2_megatron.config.phases import (
    CHANGED_SCHEDULE_KEYS,
    CHANGED_SECTIONS,
    last_step_here,
    phase_at,
    phases_of,
)
from k2_megatron.config.refusal import Refusal
from k2_megatron.config.resolve import BATCH_KEYS, DEGREE_KEYS, fitting_world_sizes
from k2_megatron.config.schedule import PhaseConfig

_LENGTHS = ("steps", "tokens", "until_tokens")
_SHOWN_SIZES = 8


def _each(config: Config) -> Iterator[tuple[str, PhaseConfig]]:
    for index, phase in enumerate(config.schedule.phases):
        yield f"schedule.phases[{index}]", phase


def refuse_phase_without_one_length(config: Config) -> Iterable[Refusal]:
    """Two lengths contradict each other, and without one a phase has no end."""
    for key, phase in _each(config):
        given = [name for name in _LENGTHS if getattr(phase, name) is not None]
        if len(given) != 1:
            yield Refusal(
                tuple(f"{key}.{name}" for name in given or _LENGTHS),
                "exactly one of steps, tokens and until_tokens",
                "it is the length of the phase",
            )


def refuse_phase_that_has_ended_before_it_begins(config: Config) -> Iterable[Refusal]:
    """until_tokens counts from the beginning of the run."""
    for (key, given), phase in zip(_each(config), phases_of(config), strict=False):
        until, begin = given.until_tokens, phase.consumed_tokens
        if until is not None and 2 * (until - begin) < phase.step_tokens:
            yield Refusal(
                (f"{key}.until_tokens",),
                f"at least {begin + (phase.step_tokens + 1) // 2}",
                f"the phases before it have consumed {begin}, and a step takes {phase.step_tokens}",
            )


def refuse_phase_name_given_twice(config: Config) -> Iterable[Refusal]:
    """Messages, metrics and `plan --phase` tell phases by their names."""
    seen: set[str] = set()
    for key, phase in _each(config):
        if phase.name in seen:
            yield Refusal((f"{key}.name",), "a name of its own", "an earlier phase has this name")
        seen.add(phase.name)


def refuse_changes_in_the_first_phase(config: Config) -> Iterable[Refusal]:
    """The sections would describe no phase, and what they say would have no effect."""
    for key, phase in list(_each(config))[:1]:
        for name in CHANGED_SCHEDULE_KEYS:
            if getattr(phase, name) is not None:
                yield Refusal(
                    (f"{key}.{name}",),
                    f"schedule.{name} in its place",
                    "the first phase is what the sections say",
                )
        for section in CHANGED_SECTIONS:
            for name, _ in getattr(phase, section).given:
                yield Refusal(
                    (f"{key}.{section}.{name}",),
                    f"{section}.{name} in its place",
                    "the first phase is what the sections say",
                )


def refuse_course_without_its_end(config: Config) -> Iterable[Refusal]:
    """linear and cosine lead somewhere; the first phase has no rate to keep."""
    for index, (key, phase) in enumerate(_each(config)):
        keeps = phase.lr_style == "continue" or (phase.lr_style == "constant" and index)
        if phase.lr is None and not keeps:
            yield Refusal(
                (f"{key}.lr", f"{key}.lr_style"),
                "a number >= 0",
                "it is the learning rate of the last step of the phase",
            )


def refuse_rate_without_effect(config: Config) -> Iterable[Refusal]:
    """A course that goes on has its end already; a constant one comes from nowhere."""
    for key, phase in _each(config):
        style = f"{key}.lr_style"
        if phase.lr is not None and phase.lr_style == "continue":
            reason = "the course of the phase before goes on to its own end"
            yield Refusal((f"{key}.lr", style), "leaving it out", reason)
        if phase.lr_start is not None and phase.lr_style in ("continue", "constant"):
            reason = "only linear and cosine leave from somewhere"
            yield Refusal((f"{key}.lr_start", style), "leaving it out", reason)


def refuse_going_on_with_no_course(config: Config) -> Iterable[Refusal]:
    """`continue` needs a course that is on its way."""
    styles = ["constant", *(phase.lr_style for phase in config.schedule.phases)]
    on_its_way = False
    for (key, _), (before, style) in zip(_each(config), pairwise(styles), strict=True):
        on_its_way = before in ("linear", "cosine") or (before == "continue" and on_its_way)
        if style == "continue" and not on_its_way:
            yield Refusal(
                (f"{key}.lr_style",),
                "constant, linear or cosine",
                "the phase before has no linear or cosine course that could go on",
            )


def refuse_new_processes_that_cannot_resume(config: Config) -> Iterable[Refusal]:
    """The next processes find the checkpoint of the last, which `never` refuses to go on with."""
    phases = phases_of(config)
    first = last_step_here(phases, 1) + 1
    if config.checkpoint.resume == "never" and first <= phases[-1].last_step:
        yield Refusal(
            ("checkpoint.resume", "schedule.phases"),
            "auto",
            f"phase {phase_at(phases, first).name} begins in new processes, from a checkpoint",
        )


def refuse_phases_that_no_process_count_fits(config: Config) -> Iterable[Refusal]:
    """Every start checks all phases, so that a run cannot come to one that it cannot train."""
    phases = phases_of(config)
    schedules = [phase.config.schedule for phase in phases]
    if any(one.global_batch_size % one.micro_batch_size for one in schedules):
        return
    fitting = [fitting_world_sizes(phase.config) for phase in phases]
    if not all(fitting):  # the rules of that phase say why
        return
    common = fitting[0]
    for phase, sizes in zip(phases[1:], fitting[1:], strict=True):
        both = [size for size in common if size in sizes]
        if not both:
            yield Refusal(
                ("schedule.phases", *BATCH_KEYS, *DEGREE_KEYS),
                "phases that share a number of processes",
                f"the number must fit every phase: phase {phase.name} takes {_shown(sizes)}; "
                f"all before it {_shown(common)}",
            )
            return
        common = both


def _shown(sizes: Sequence[int]) -> str:
    more = ", ..." if len(sizes) > _SHOWN_SIZES else ""
    return ", ".join(map(str, sizes[:_SHOWN_SIZES])) + more


PHASE_RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    refuse_phase_without_one_length,
    refuse_phase_that_has_ended_before_it_begins,
    refuse_phase_name_given_twice,
    refuse_changes_in_the_first_phase,
    refuse_course_without_its_end,
    refuse_rate_without_effect,
    refuse_going_on_with_no_course,
    refuse_new_processes_that_cannot_resume,
    refuse_phases_that_no_process_count_fits,
)
