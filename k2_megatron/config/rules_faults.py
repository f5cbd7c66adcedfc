# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules about what is done when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from k2_megatron.config.config import Config
from k2_megatron.config.refusal import Refusal


def refuse_hangs_found_after_the_timeout(config: Config) -> Iterable[Refusal]:
    """A collective that times out ends its rank before the others can say where they stand."""
    run = config.run
    given, timeout = run.hang_timeout_seconds, run.distributed_timeout_seconds
    if given is not None and given >= timeout:
        yield Refusal(
            ("run.hang_timeout_seconds", "run.distributed_timeout_seconds"),
            f"a number < {timeout:g}, or null",
            "a collective would end the rank before its stacks are written",
        )


def refuse_rollbacks_to_nothing(config: Config) -> Iterable[Refusal]:
    """What a run goes back to is a checkpoint."""
    if config.run.loss_spike_factor is not None and config.checkpoint.save_every_steps is None:
        yield Refusal(
            ("run.loss_spike_factor", "checkpoint.save_every_steps"),
            "null, or checkpoints every so many steps",
            "there would be nothing to go back to",
        )


def refuse_rollbacks_to_what_is_removed(config: Config) -> Iterable[Refusal]:
    """Checkpoints saved within a spike must not push out the one from before it."""
    run, checkpoint = config.run, config.checkpoint
    if run.loss_spike_factor is None or checkpoint.save_every_steps is None:
        return
    within = -(-run.loss_spike_steps // checkpoint.save_every_steps)
    if checkpoint.keep_last is not None and checkpoint.keep_last <= within:
        yield Refusal(
            (
                "checkpoint.keep_last",
                "run.loss_spike_factor",
                "run.loss_spike_steps",
                "checkpoint.save_every_steps",
            ),
            f"at least {within + 1}, or null",
            "a spike is known after its last step, and a checkpoint from before it must be left",
        )


FAULT_RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    refuse_hangs_found_after_the_timeout,
    refuse_rollbacks_to_nothing,
    refuse_rollbacks_to_what_is_removed,
)
