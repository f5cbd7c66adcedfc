# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `schedule` section: how long, in what batches and at which learning rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from k2_megatron.config.option import option, required


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Length, batch and learning rate of the run. Batch and rate defaults are K2's.

    K2: 500 steps of warm-up, 2.0e-4 for 10 T tokens, then a cosine to 2.0e-5 over 5.5 T tokens,
    in batches of 67 M tokens (report section 2.5).
    """

    train_steps: int = field(
        metadata=required(
            "Optimizer steps of the whole run, warm-up and decay included.", minimum=1
        )
    )
    seq_length: int = option(4096, "Tokens of a sequence. K2: 4096. Report section 2.5.", minimum=2)
    micro_batch_size: int = option(1, "Sequences that one process computes at a time.", minimum=1)
    global_batch_size: int = option(
        16384,
        "Sequences of one optimizer step over all processes. 16384 x 4096 tokens are K2's 67 M. "
        "Report section 2.5.",
        minimum=1,
    )
    lr: float = option(2e-4, "Learning rate after warm-up. Report section 2.5.", above=0)
    min_lr: float = option(
        2e-5, "Learning rate at the end of the decay. Report section 2.5.", minimum=0
    )
    lr_warmup_steps: int = option(
        500, "Steps over which the rate rises linearly from 0. Report section 2.5.", minimum=0
    )
    lr_decay_style: Literal["constant", "linear", "cosine", "wsd"] = option(
        "wsd",
        "Course of the rate after warm-up: constant; linear or cosine down to min_lr over the "
        "whole run; wsd: constant, then a cosine over the last lr_wsd_decay_steps. Report "
        "section 2.5.",
    )
    lr_wsd_decay_steps: int | None = option(
        None,
        "Steps of wsd's cosine tail, counted back from train_steps. Required by wsd, refused "
        "with another style. K2: 5.5 of 15.5 T tokens.",
        minimum=1,
    )
