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
