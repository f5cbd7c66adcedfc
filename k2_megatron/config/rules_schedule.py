# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules about schedule, batch, data, stops and checkpoints.

Each is named for what it refuses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from k2_megatron.config.config import Config
from k2_megatron.config.refusal import Refusal

_STEPS = "schedule.train_steps"
_TAIL = "schedule.lr_wsd_decay_steps"
_WARMUP = "schedule.lr_warmup_steps"
_STYLE = "schedule.lr_decay_style"


def refuse_wsd_without_its_tail(config: Config) -> Iterable[Refusal]:
    """The length of the decay is the D of warm-up, stable, decay."""
    schedule = config.schedule
    if schedule.lr_decay_style == "wsd" and schedule.lr_wsd_decay_steps is None:
        yield Refusal((_TAIL, _STYLE), "an integer >= 1", "wsd needs the length of its decay")


def refuse_tail_longer_than_the_run(config: Config) -> Iterable[Refusal]:
    """Warm-up, constant part and tail follow one another."""
    schedule = config.schedule
    if schedule.lr_decay_style != "wsd" or schedule.lr_wsd_decay_steps is None:
        return
    longest = schedule.train_steps - schedule.lr_warmup_steps
    if schedule.lr_wsd_decay_steps > longest > 0:
        yield Refusal(
            (_TAIL, _STEPS, _WARMUP, _STYLE),
            f"at most {longest}",
            "the decay begins after the warm-up and ends with the run",
        )


def refuse_warmup_as_long_as_the_run(config: Config) -> Iterable[Refusal]:
    """The rate would never be reached."""
    schedule = config.schedule
    if schedule.lr_warmup_steps >= schedule.train_steps:
        yield Refusal(
            (_WARMUP, _STEPS),
            f"less than {schedule.train_steps}",
            "the run would end before its learning rate is reached",
        )


def refuse_decay_that_rises(config: Config) -> Iterable[Refusal]:
    """min_lr is where the decay ends."""
    schedule = config.schedule
    if schedule.lr_decay_style != "constant" and schedule.min_lr > schedule.lr:
        yield Refusal(
            ("schedule.min_lr", "schedule.lr", _STYLE),
            f"a number <= {schedule.lr}",
            "the rate decays from lr to min_lr",
        )


def refuse_batch_that_does_not_divide(config: Config) -> Iterable[Refusal]:
    """A global batch is a whole number of micro-batches."""
    schedule = config.schedule
    if schedule.global_batch_size % schedule.micro_batch_size:
        yield Refusal(
            ("schedule.global_batch_size", "schedule.micro_batch_size"),
            f"a multiple of {schedule.micro_batch_size}",
            "a global batch is made of whole micro-batches",
        )


def refuse_stop_after_the_end(config: Config) -> Iterable[Refusal]:
    """stop_after_step cuts a run short; it cannot lengthen it."""
    stop = config.run.stop_after_step
    if stop is not None and stop > config.schedule.train_steps:
        yield Refusal(
            ("run.stop_after_step", _STEPS),
            f"at most {config.schedule.train_steps}, or null",
            "the run ends before that",
        )


def refuse_corpus_given_twice(config: Config) -> Iterable[Refusal]:
    """A repeated corpus is a mistake; more weight says the same on purpose."""
    counts = Counter(corpus.path for corpus in config.data.corpora)
    for path, count in counts.items():
        if count > 1:
            yield Refusal(
                ("data.corpora",),
                "each path once",
                f"{path} is listed {count} times; raise its weight instead",
            )


def refuse_keeping_steps_that_are_not_saved(config: Config) -> Iterable[Refusal]:
    """keep_every_steps picks among the checkpoints that save_every_steps makes."""
    checkpoint = config.checkpoint
    keep, save = checkpoint.keep_every_steps, checkpoint.save_every_steps
    if keep is not None and (save is None or keep % save):
        yield Refusal(
            ("checkpoint.keep_every_steps", "checkpoint.save_every_steps"),
            "null" if save is None else f"a multiple of {save}",
            "no checkpoint would be saved at such a step",
        )


def refuse_keeping_some_where_all_are_kept(config: Config) -> Iterable[Refusal]:
    """Without keep_last nothing is removed, and keep_every_steps would change nothing."""
    checkpoint = config.checkpoint
    if checkpoint.keep_every_steps is not None and checkpoint.keep_last is None:
        yield Refusal(
            ("checkpoint.keep_every_steps", "checkpoint.keep_last"),
            "null",
            "keep_last null keeps all",
        )


SCHEDULE_RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    refuse_wsd_without_its_tail,
    refuse_tail_longer_than_the_run,
    refuse_warmup_as_long_as_the_run,
    refuse_decay_that_rises,
    refuse_batch_that_does_not_divide,
    refuse_stop_after_the_end,
    refuse_corpus_given_twice,
    refuse_keeping_steps_that_are_not_saved,
    refuse_keeping_some_where_all_are_kept,
)
