# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `schedule` section: how long, in what batches and at which learning rate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from k2_megatron.config.model import YARN_KEYS
from k2_megatron.config.option import Changes, changes, option, required

# Keys of `model` that steer training without shaping the model: a phase may change them.
PHASE_MODEL_KEYS = (
    "moe_router_bias_update_rate",
    "moe_aux_loss_coeff",
    "mtp_loss_scaling_factor",
    "rope_type",
    *YARN_KEYS,
)


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One phase of a schedule in phases. It says how long it is and what it changes.

    Exactly one of steps, tokens and until_tokens gives its length. What a phase changes stays
    changed in the phases after it; the sections describe the first phase, which changes nothing.
    """

    name: str = field(
        metadata=required(
            "Name of the phase, for messages, metrics and `plan --phase`.",
            pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*",
            pattern_words="of letters, digits and . _ - that begins with a letter or digit",
        )
    )
    steps: int | None = option(None, "Length in optimizer steps.", minimum=1)
    tokens: int | None = option(
        None, "Length in tokens, rounded to the nearest whole number of steps.", minimum=1
    )
    until_tokens: int | None = option(
        None,
        "Tokens since the beginning of the run at which the phase ends, rounded to the nearest "
        "whole number of steps.",
        minimum=1,
    )
    lr_style: Literal["constant", "linear", "cosine", "continue"] = option(
        "constant",
        "Course of the learning rate: constant; linear or cosine from lr_start to lr; continue: "
        "the course of the phase before goes on and ends with this phase, measured in tokens where "
        "the phases' steps differ.",
    )
    lr: float | None = option(
        None,
        "Learning rate of the last step, and of every step where it is constant. null: with "
        "constant the rate at which the phase before ended; refused with continue.",
        minimum=0,
    )
    lr_start: float | None = option(
        None,
        "Learning rate from which linear and cosine leave; the first step is already on its way. "
        "null: where the phase before ended, 0 in the first phase (a warm-up).",
        minimum=0,
    )
    seq_length: int | None = option(
        None,
        "Tokens of a sequence from here on. Another length reads other documents (docs/data.md).",
        minimum=2,
    )
    global_batch_size: int | None = option(
        None, "Sequences of one optimizer step from here on.", minimum=1
    )
    micro_batch_size: int | None = option(
        None, "Sequences that one process computes at a time from here on.", minimum=1
    )
    model: Changes = field(
        default=Changes(),
        metadata=changes(
            "model",
            "Keys of model from here on. Those of positions and losses need new processes.",
            *PHASE_MODEL_KEYS,
        ),
    )
    parallel: Changes = field(
        default=Changes(),
        metadata=changes(
            "parallel",
            "Keys of parallel from here on: the run saves, ends with 3 and goes on in new "
            "processes. sequence_parallel and expert_tensor_parallel_size are automatic again "
            "where the sizes they follow from change.",
        ),
    )
    memory: Changes = field(
        default=Changes(),
        metadata=changes("memory", "Keys of memory from here on; needs new processes."),
    )
    data: Changes = field(
        default=Changes(),
        metadata=changes(
            "data",
            "Corpora from here on, read from their beginning whatever was read before.",
            "corpora",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Length, batch and learning rate of the run. Batch and rate defaults are K2's.

    K2: 500 steps of warm-up, 2.0e-4 for 10 T tokens, then a cosine to 2.0e-5 over 5.5 T tokens,
    in batches of 67 M tokens (report section 2.5).

    A run has one schedule (train_steps and the lr keys) or phases, which replace them all.
    """

    train_steps: int = field(
        metadata=required(
            "Optimizer steps of the whole run, warm-up and decay included. With phases it is left "
            "out: they add up to it.",
            minimum=1,
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
    phases: tuple[PhaseConfig, ...] = option(
        (),
        "Phases in their order, in place of train_steps and the lr keys: stages of a recipe, ramps "
        "of the batch, longer sequences.",
    )
