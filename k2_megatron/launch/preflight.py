# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What can be found wrong with a run in a moment, without torch, before anything is started."""

from __future__ import annotations

import os

from k2_megatron.checkpoint.folder import list_steps
from k2_megatron.config.config import Config
from k2_megatron.config.phases import last_step_here, phases_of
from k2_megatron.data.corpora import check_corpora
from k2_megatron.data.order import plan_order
from k2_megatron.data.request import requests_of
from k2_megatron.errors import CheckpointError, ConfigError
from k2_megatron.run_folder import RunFolder


def check_data(config: Config) -> None:
    """Check that the corpora are whole, fit the model and are long enough for both splits.

    Raises:
        DataError: they are not.
    """
    for request in requests_of(config):
        check_corpora(request.paths, config.model.vocab_size, verify_index=False)
        plan_order(**request.order, valid_samples=request.valid_samples)


def is_at_handover(config: Config, folder: RunFolder) -> bool:
    """Whether the newest checkpoint ends a phase after which other processes go on."""
    step = max(list_steps(folder.checkpoints), default=0)
    phases = phases_of(config)
    last = config.run.stop_after_step or config.schedule.train_steps
    return 0 < step < last and step == last_step_here(phases, step)


def check_run_folder(config: Config) -> RunFolder:
    """Make the run folder; refuse one that `checkpoint.resume: never` forbids to go on with.

    Raises:
        ConfigError: the folder cannot be made or written.
        CheckpointError: checkpoints lie in it, and the run may not resume.
    """
    folder = RunFolder.of(config)
    steps = list_steps(folder.checkpoints)
    if steps and config.checkpoint.resume == "never":
        found = ", ".join(path.name for path in list(steps.values())[-3:])
        raise CheckpointError(
            f"checkpoint.resume is never, and {folder.checkpoints} holds checkpoints: {found}; "
            "use another run.name, move that folder away, or set checkpoint.resume: auto to go on"
        )
    where = f"run.folder {config.run.folder}, run.name {config.run.name}: {folder.path}"
    try:
        folder.logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{where} cannot be made: {error.strerror}: {error.filename}") from error
    if not os.access(folder.path, os.W_OK | os.X_OK):
        raise ConfigError(f"{where} cannot be written: permission denied")
    return folder
