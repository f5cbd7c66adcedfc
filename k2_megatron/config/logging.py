# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `logging` section: what is reported and how often."""

from __future__ import annotations

from dataclasses import dataclass

from k2_megatron.config.numbers import PATTERN, PATTERN_WORDS
from k2_megatron.config.option import option


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Metrics and validation. Metrics go to metrics.jsonl of the run folder."""

    log_every_steps: int = option(1, "Steps between lines of metrics.", minimum=1)
    valid_every_steps: int | None = option(
        None, "Steps between validations. null: only after the last step.", minimum=1
    )
    valid_steps: int = option(8, "Global batches of one validation.", minimum=1)
    tensorboard: bool = option(True, "Also write the metrics for TensorBoard.")
    trace_steps: str | None = option(
        None,
        "Steps of which a profile is recorded in traces/ of the run folder, such as '3, 10-12'. "
        "They take longer than others. null: none.",
        pattern=PATTERN,
        pattern_words=PATTERN_WORDS,
    )
    trace_ranks: str = option(
        "0",
        "Ranks that record trace_steps, one file a step and rank.",
        pattern=PATTERN,
        pattern_words=PATTERN_WORDS,
    )
    straggler_factor: float | None = option(
        1.3,
        "Name the slowest rank in the log when its attention takes so many times as long as the "
        "median rank's. null: do not measure.",
        above=1,
    )
    straggler_reports: int = option(
        5, "Logged steps in a row in which the same rank is that slow.", minimum=1
    )
