# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks do in the tests of phases: train on real text, through phases and checkpoints."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from k2_megatron.config.loader import load_config
from k2_megatron.errors import CheckpointError
from k2_megatron.platform.select import current_platform
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.batches import Text, check_text
from k2_megatron.train.measurement import measure_step
from k2_megatron.train.phases import check_phases, phase_to_build
from k2_megatron.train.session import Session, build_session
from k2_megatron.train.state import SessionSaver, resume_session
from k2_megatron.train.step import evaluate, train_step
from tests.distributed.jobs import parameters, router_biases


def train_phases(
    config_path: str,
    overrides: list[str],
    last: int | None,
    save_after: int | None = None,
) -> dict[str, Any]:
    """Resume, and train to step `last`, or as far as these processes can; save there.

    Args:
        config_path, overrides: of the run.
        last: the last step; None: of all that these processes can train.
        save_after: another step after which to save.
    """
    config = load_config(config_path, overrides)
    folder = RunFolder.of(config)
    order = check_text(config)
    checked = check_phases(config, current_platform(), dist.get_world_size())
    phase = phase_to_build(checked.phases, folder)
    session = build_session(
        checked.config, current_platform(), dist.get_world_size(), checked.phases, phase
    )
    text = Text(session)
    try:
        resumed = resume_session(session, folder, order)
    except CheckpointError as error:
        return {"refused": str(error)}
    saver = SessionSaver(session, folder, order)
    steps = []
    batches = text.train(resumed.step + 1)
    end = session.last_step_here if last is None else last
    for step in range(resumed.step + 1, end + 1):
        session = session.at(step)
        batch = next(batches)
        outcome = train_step(session, batch, step)
        record = measure_step(session, step, outcome, 1.0, None, {})
        read = [row.tolist() for one in batch if one for row in one["tokens"]]
        steps.append((step, outcome.loss, outcome.lr, record.consumed_tokens, record.phase, read))
        if step in (end, save_after):
            saver.save(step)
    saver.finish()
    return {
        "steps": steps,
        "valid": evaluate(session, text.valid(end)),
        "parameters": parameters(session.model),
        "shapes": session.model.shapes,
        "biases": router_biases(session),
        "built": built(session),
        "notes": resumed.notes,
    }


def built(session: Session) -> str:
    """The axes above 1."""
    return str(session.topology)
