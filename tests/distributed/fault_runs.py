# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Runs of two processes with a fault, and what they leave in the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from k2_megatron.checkpoint.folder import find
from k2_megatron.train import tags
from tests.distributed.harness import run_ranks

JOB = "tests.distributed.fault_jobs.train"
DATA_PARALLEL = "parallel.pipeline_model_parallel_size=1"
QUIET = ("logging.valid_every_steps=null", "logging.valid_steps=1", "logging.tensorboard=false")


def run(place: Path, name: str, *overrides: str, **given: Any) -> list[dict[str, Any]]:
    keys = {one.partition("=")[0] for one in overrides}
    quiet = [one for one in QUIET if one.partition("=")[0] not in keys]
    return run_ranks(
        JOB, 2, folder=str(place), overrides=[f"run.name={name}", *quiet, *overrides], **given
    )


def steps_of(place: Path, name: str) -> list[int]:
    lines = (place / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def points_of(place: Path, name: str) -> list[int]:
    """The steps that TensorBoard shows the last value of."""
    events = EventAccumulator(str(place / "runs" / name / "tensorboard"))
    events.Reload()
    return [point.step for point in events.Scalars(tags.SKIPPED_STEPS)]


def events_of(place: Path, name: str) -> list[dict[str, Any]]:
    lines = (place / "runs" / name / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def saved(place: Path, name: str) -> list[int]:
    found = find(place / "runs" / name / "checkpoints")
    return [int(path.name.removeprefix("step_")) for path in found]


def assert_same_end(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    """Weights, moments, router biases and counters, bit for bit."""
    for mine, theirs in zip(one, other, strict=True):
        assert mine["biases"] == theirs["biases"]
        assert mine["held"]["updates"] == theirs["held"]["updates"]
        for kind in ("state", "parameters"):
            for here, there in zip(mine["held"][kind], theirs["held"][kind], strict=True):
                assert here[:3] == there[:3]
                assert torch.equal(here[3], there[3]), here[:3]


SPIKE = (
    "run.loss_spike_factor=1.5",
    "run.loss_spike_steps=2",
    "run.loss_spike_window=4",
    "schedule.train_steps=12",
    "schedule.lr=4.0e-3",
    DATA_PARALLEL,
)
