# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules about what is recorded. Each is named for what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from k2_megatron.config.config import Config
from k2_megatron.config.numbers import Numbers
from k2_megatron.config.refusal import Refusal

# A trace of one step of one rank takes some megabytes, of a large model some hundred.
MOST_TRACES = 64
_STEPS = "logging.trace_steps"
_RANKS = "logging.trace_ranks"


def refuse_ranges_that_run_backwards(config: Config) -> Iterable[Refusal]:
    """Nothing would be recorded."""
    for key, text in ((_STEPS, config.logging.trace_steps), (_RANKS, config.logging.trace_ranks)):
        if Numbers.of(text).is_backwards:
            yield Refusal((key,), "ranges that run upwards", "a range ends before it begins")


def refuse_traces_of_steps_that_never_come(config: Config) -> Iterable[Refusal]:
    """Steps are counted from 1 to the end of the run."""
    steps = Numbers.of(config.logging.trace_steps)
    if not len(steps):
        return
    stop = config.run.stop_after_step
    key = "schedule.train_steps" if stop is None else "run.stop_after_step"
    last = config.schedule.train_steps if stop is None else stop
    if steps.smallest < 1 or steps.largest > last:
        yield Refusal((_STEPS, key), f"steps from 1 to {last}", "others never come")


def refuse_more_traces_than_anyone_reads(config: Config) -> Iterable[Refusal]:
    """Traces are large, and a forgotten range would fill the disk."""
    found = len(Numbers.of(config.logging.trace_steps)) * len(
        Numbers.of(config.logging.trace_ranks)
    )
    if found > MOST_TRACES:
        yield Refusal(
            (_STEPS, _RANKS),
            f"at most {MOST_TRACES} traces, steps times ranks",
            f"these are {found}, of megabytes each",
        )


LOGGING_RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    refuse_ranges_that_run_backwards,
    refuse_traces_of_steps_that_never_come,
    refuse_more_traces_than_anyone_reads,
)
