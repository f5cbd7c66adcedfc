# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks of the pipeline's tests do beside the jobs of `jobs.py`."""

from __future__ import annotations

from typing import Any

from k2_megatron.run_folder import RunFolder
from k2_megatron.train.batches import Text, check_text
from k2_megatron.train.state import SessionSaver, resume_session
from k2_megatron.train.step import evaluate, train_step
from tests.distributed.jobs import build, parameters, synthetic_batches


def train_varying(config_path: str, overrides: list[str], counts: list[int]) -> dict[str, Any]:
    """One step for each number of micro-batches, evaluation between them; losses, parameters."""
    session = build(config_path, overrides)
    losses, valid_losses = [], []
    for step, count in enumerate(counts, 1):
        batches = synthetic_batches(session.config, session, step)[:count]
        losses.append(train_step(session, batches, step).loss)
        held_out = synthetic_batches(session.config, session, 100 + step)[: counts[0]]
        valid_losses.append(evaluate(session, iter([held_out])))
    return {
        "losses": losses,
        "valid_losses": valid_losses,
        "parameters": parameters(session.model),
        "shapes": session.model.shapes,
    }


def train_on_text(
    config_path: str, overrides: list[str], first: int, last: int
) -> list[tuple[float, int]]:
    """Steps on the run's own text, from its checkpoint if `first` is not 1; a save at the end.

    Returns:
        Of every step the loss and the number of micro-batches.
    """
    session = build(config_path, overrides)
    folder, order = RunFolder.of(session.config), check_text(session.config)
    if first > 1:
        assert resume_session(session, folder, order).step == first - 1
    batches, found = Text(session).train(first), []
    saver = SessionSaver(session, folder, order)
    for step in range(first, last + 1):
        batch = next(batches)
        found.append((train_step(session, batch, step).loss, len(batch)))
    saver.save(last)
    saver.finish()
    return found
