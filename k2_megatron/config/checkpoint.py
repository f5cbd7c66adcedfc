# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `checkpoint` section: when the run is saved and how it resumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from k2_megatron.config.option import option


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving and resuming. A checkpoint is also saved on a signal."""

    save_every_steps: int | None = option(
        1000, "Steps between checkpoints. null: only at the end and on a signal.", minimum=1
    )
    save_at_end: bool = option(
        True, "Save after the last step too. false: for a measurement whose result is not kept."
    )
    keep_last: int | None = option(
        3, "How many of the newest checkpoints are kept. null: all.", minimum=1
    )
    keep_every_steps: int | None = option(
        None,
        "Checkpoints whose step is a multiple of it are kept for ever, beside keep_last. null: "
        "none.",
        minimum=1,
    )
    async_save: bool = option(
        True,
        "Copy to host memory and write in the background while training goes on; needs host memory "
        "for this rank's part of a checkpoint. false: wait until it is written.",
    )
    resume: Literal["auto", "never"] = option(
        "auto",
        "auto: continue from the newest checkpoint of the run folder if there is one. never: "
        "refuse to start where one lies.",
    )
    max_failed_saves: int = option(
        3,
        "Saves in a row that a full or failing disk may refuse; training goes on until then.",
        minimum=1,
    )
