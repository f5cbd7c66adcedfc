# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the ranks do in the tests of checkpoints: save in one layout, go on in another."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from k2_megatron.checkpoint.data_file import matrix_name
from k2_megatron.checkpoint.weights import read_weight, weight_shapes, write_weights
from k2_megatron.data.request import DataOrder
from k2_megatron.errors import CheckpointError
from k2_megatron.run_folder import RunFolder
from k2_megatron.train.holdings import run_holdings, run_matrices
from k2_megatron.train.session import Session
from k2_megatron.train.state import SessionSaver, resume_session
from tests.distributed.canonical import Rectangle
from tests.distributed.jobs import build, parameters, steps

ORDER = DataOrder(((0, "the data order"),))


def held(session: Session) -> dict[str, Any]:
    """Copies of all that this rank holds, copies of other ranks included, and the counters."""
    rectangles: list[Rectangle] = []
    for holding in run_holdings(session):
        begin = 0
        for region in holding.regions:
            values = holding.values[begin : begin + region.size].cpu().clone()
            begin += region.size
            name = matrix_name(holding.kind, region.key)
            width = region.cols[1] - region.cols[0]
            rectangles.append((name, region.rows, region.cols, values.view(-1, width)))
    return {
        "state": rectangles,
        "shapes": run_matrices(session),
        "updates": session.optimizer.num_updates(),
        "parameters": parameters(session.model),
        "model_shapes": session.model.shapes,
    }


def save_and_go_on(
    config_path: str, overrides: list[str], save_after: int, last: int
) -> dict[str, Any]:
    """Train, save after a step, and go on while it is written; what was held then, and the end."""
    session = build(config_path, overrides)
    saver = SessionSaver(session, RunFolder.of(session.config), ORDER)
    steps(session, 1, save_after)
    saver.save(save_after)
    before = held(session)
    return {"held": before, **_end(session, saver, save_after + 1, last)}


def resume_and_go_on(config_path: str, overrides: list[str], last: int) -> dict[str, Any]:
    """Resume, and train to the end; what was held after the resume, and the end."""
    session = build(config_path, overrides)
    folder = RunFolder.of(session.config)
    resumed = resume_session(session, folder, ORDER)
    before = held(session)
    saver = SessionSaver(session, folder, ORDER)
    found = {"held": before, "step": resumed.step, "notes": resumed.notes}
    return {**found, **_end(session, saver, resumed.step + 1, last)}


def _end(session: Session, saver: SessionSaver, first: int, last: int) -> dict[str, Any]:
    outcomes = []
    for step in range(first, last + 1):
        outcomes += steps(session, step, step)
        saver.advance()
    saver.finish()
    return {
        "losses": [outcome.loss for outcome in outcomes],
        "parameters": parameters(session.model),
        "biases": session.router_bias.biases(),
    }


def draw_after(config_path: str, overrides: list[str], resumes: bool) -> dict[str, Any]:
    """What the generators of this rank draw after a save, or after a resume from it."""
    session = build(config_path, overrides)
    folder = RunFolder.of(session.config)
    if resumes:
        assert resume_session(session, folder, ORDER).step == 1
    else:
        # Each rank as far along as no other, and nowhere near a seed of the configuration.
        for generator in (torch.manual_seed, random.seed, np.random.seed):
            generator(time.time_ns() % 2**30 + dist.get_rank())
        _draw(3 + dist.get_rank())
        steps(session, 1, 1)
        saver = SessionSaver(session, folder, ORDER)
        saver.save(1)
        saver.finish()
    return _draw(4)


def _draw(count: int) -> dict[str, list[float]]:
    with get_cuda_rng_tracker().fork():
        tracked = torch.rand(count).tolist()
    return {
        "torch": torch.rand(count).tolist(),
        "tracker": tracked,
        "python": [random.random() for _ in range(count)],
        "numpy": np.random.random(count).tolist(),
    }


def train_until_killed(
    config_path: str, overrides: list[str], last: int, seconds: float | None
) -> dict[str, Any]:
    """Resume, and save after every step in the background; all ranks die by SIGKILL after a time.

    Args:
        config_path, overrides: of the run.
        last: step after which the run ends.
        seconds: from now until the kill; None to live.
    """
    if seconds is not None:
        killer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        killer.daemon = True
        killer.start()
    session = build(config_path, overrides)
    folder = RunFolder.of(session.config)
    resumed = resume_session(session, folder, ORDER)
    saver = SessionSaver(session, folder, ORDER)
    for step in range(resumed.step + 1, last + 1):
        steps(session, step, step)
        saver.save(step)
    saver.finish()
    return {
        "started_after": resumed.step,
        "parameters": parameters(session.model),
        "biases": session.router_bias.biases(),
    }


def start_from_weights(config_path: str, overrides: list[str], source: str) -> dict[str, Any]:
    """Write the weights of a checkpoint as one that holds weights alone, and start from it."""
    session = build(config_path, overrides)
    folder = RunFolder.of(session.config)
    if dist.get_rank() == 0:
        folder.checkpoints.mkdir(parents=True)
        keys = list(weight_shapes(Path(source)))
        whole = ((key, read_weight(Path(source), key)) for key in reversed(keys))
        write_weights(folder.checkpoints, session.config, whole)
    dist.barrier()
    resumed = resume_session(session, folder, ORDER)
    found = {"held": held(session), "step": resumed.step, "notes": resumed.notes}
    return {**found, "losses": [outcome.loss for outcome in steps(session, 1, 1)]}


def save_with_unequal_copies(config_path: str, overrides: list[str]) -> str:
    """Let the last rank's copy of a norm gain differ in one bit, and try to save."""
    session = build(config_path, overrides)
    steps(session, 1, 1)
    for holding in run_holdings(session):
        if holding.regions[0].key == "layers.0.mlp_norm" and holding.copy_of == "tensor rank 1":
            holding.values.view(torch.int32)[0] ^= 1
    try:
        SessionSaver(session, RunFolder.of(session.config), ORDER).save(1)
    except CheckpointError as error:
        return str(error)
    return "saved"
