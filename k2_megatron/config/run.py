# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `run` section: what the run is called, where it lives and when it stops."""

from __future__ import annotations

from dataclasses import dataclass, field

from k2_megatron.config.option import NO_OUTER_BLANKS, NO_OUTER_BLANKS_WORDS, option, required


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Identity of the run. Everything a run writes lies in `<folder>/<name>/`."""

    name: str = field(
        metadata=required(
            "Name of the run and of its folder. Training under a name that has checkpoints "
            "resumes them (see checkpoint.resume).",
            pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*",
            pattern_words="of letters, digits and . _ - that begins with a letter or digit",
        )
    )
    folder: str = option(
        "runs",
        "Folder that holds the run folders; relative to the working directory.",
        pattern=NO_OUTER_BLANKS,
        pattern_words=NO_OUTER_BLANKS_WORDS,
    )
    seed: int = option(
        1234,
        "Seed of the initial weights and of the order of the documents.",
        minimum=0,
    )
    stop_after_step: int | None = option(
        None,
        "Save a checkpoint and stop after this step (counted from 1) although the schedule is "
        "longer; the learning rate still follows schedule.train_steps. null: run to the end.",
        minimum=1,
    )
    distributed_timeout_seconds: float = option(
        600.0,
        "Seconds that a process waits for the others in a collective before the run fails. "
        "600 leaves room for slow file systems at start-up.",
        above=0,
    )
    hang_timeout_seconds: float | None = option(
        None,
        "Seconds without a finished step, validation or save after which the job ends with the "
        "stacks of all ranks; longer than the longest of them. null: four fifths of "
        "distributed_timeout_seconds.",
        above=0,
    )
    max_consecutive_skipped_steps: int = option(
        10,
        "Steps in a row that a loss or gradient that is not finite may skip; so many end the run "
        "with a diagnosis. bf16 needs no loss scale to settle: more than a few have a cause.",
        minimum=1,
    )
    loss_spike_factor: float | None = option(
        None,
        "Go back to a checkpoint and leave text out when the loss rises above the median of the "
        "last losses by so many robust standard deviations (1.4826 times the median absolute "
        "deviation). null: never.",
        above=0,
    )
    loss_spike_steps: int = option(3, "Steps in a row above it that make a spike.", minimum=1)
    loss_spike_window: int = option(
        100, "Losses that median and deviation are taken from.", minimum=2
    )
    max_rollbacks: int = option(
        3, "How often a run may go back because of a spike before it ends.", minimum=1
    )

    @property
    def hang_seconds(self) -> float:
        """hang_timeout_seconds, or what it is where null."""
        return self.hang_timeout_seconds or 0.8 * self.distributed_timeout_seconds
