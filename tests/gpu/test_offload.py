# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""On real GPUs: activations that were away change no bit, copies late and poison behind them."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.cases import FP8, FULL, HOST, MEDIUM, PP, VPP
from tests.gpu.runner import run_jobs

JOB = "tests.distributed.offload_jobs.train_varied"
# What stays on the device, and the same of which some is away.
PAIRS = {"host": ((), (HOST,)), "fp8+host": ((FP8,), (FULL,))}


def _assert_equal(options: tuple[str, ...], world_size: int, folder: Path) -> None:
    """Steps of 4, 2 and 8 micro-batches, an evaluation behind each; bit for bit."""
    jobs = []
    for pair, sides in PAIRS.items():
        for name, memory, delayed in (
            ("stays", sides[0], False),
            ("away", sides[1], False),
            ("late", sides[1], True),
        ):
            kwargs: dict[str, Any] = {"config_path": MEDIUM, "overrides": [*options, *memory]}
            kwargs |= {"counts": [4, 2, 8], "delayed": delayed}
            jobs.append({"name": f"{pair} {name}", "function": JOB, "kwargs": kwargs})
    found = run_jobs(jobs, world_size, folder)
    for ranks in found.values():
        for result in ranks:
            assert not isinstance(result, str), result
    for pair in PAIRS:
        for name in ("away", "late"):
            for stayed, other in zip(found[f"{pair} stays"], found[f"{pair} {name}"], strict=True):
                _same(stayed, other, f"{pair} {name}")


def _same(stayed: dict[str, Any], other: dict[str, Any], name: str) -> None:
    assert other["traffic"]["sent"] > 0, name
    assert other["high_water"] <= other["pool"] <= other["planned"], name
    for key in ("losses", "norms", "valid"):
        assert stayed[key] == other[key], f"{name}: {key}"
    for one, two in zip(
        [*chain(*stayed["gradients"]), *stayed["parameters"]],
        [*chain(*other["gradients"]), *other["parameters"]],
        strict=True,
    ):
        assert one[:3] == two[:3] and torch.equal(one[3], two[3]), f"{name}: {one[0]}"


@pytest.mark.gpu
def test_offload_changes_no_bit_on_one_gpu(tmp_path: Path) -> None:
    """Without a pipeline, four layers in a chunk travel one by one."""
    _assert_equal((), 1, tmp_path)


@pytest.mark.multi_gpu
def test_offload_changes_no_bit_in_an_interleaved_pipeline(tmp_path: Path) -> None:
    _assert_equal((PP, VPP), 2, tmp_path)
