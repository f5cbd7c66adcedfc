# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The `logging` section: what is reported and how often."""

from __future__ import annotations

from dataclasses import dataclass

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
