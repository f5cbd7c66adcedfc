# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""On real GPUs: the equality matrix, and the CPU and the GPU against each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.canonical import assemble
from tests.gpu.cases import MEDIUM, SMALL
from tests.gpu.matrix import run_matrix
from tests.gpu.runner import run_jobs


@pytest.mark.gpu
def test_one_gpu_matrix(tmp_path: Path) -> None:
    rows = run_matrix(1, tmp_path)
    assert all(row.passed for row in rows), "\n".join(map(str, rows))


@pytest.mark.multi_gpu
def test_two_gpu_matrix(tmp_path: Path) -> None:
    rows = run_matrix(2, tmp_path)
    assert all(row.passed for row in rows), "\n".join(map(str, rows))


@pytest.mark.gpu
@pytest.mark.parametrize("config", [SMALL, MEDIUM], ids=["small", "medium"])
def test_cpu_and_gpu_agree_in_fp32(config: str, tmp_path: Path) -> None:
    """Transformer Engine's layers on the GPU, megatron-core's local ones on the CPU, tf32 off."""
    kwargs = {"config_path": config, "overrides": ["precision.dtype=fp32"], "num_steps": 2}
    job = {"name": "fp32", "function": "train", "kwargs": kwargs}
    gpu, cpu = (
        run_jobs([job], 1, tmp_path / platform, platform=platform)["fp32"][0]
        for platform in ("cuda", "cpu")
    )
    for result in (gpu, cpu):
        assert not isinstance(result, str), result
    assert gpu["losses"] == pytest.approx(cpu["losses"], rel=1e-5)
    assert gpu["grad_norms"] == pytest.approx(cpu["grad_norms"], rel=1e-4)
    for name in ("initial", "gradients"):
        there = assemble([gpu[name]], gpu["shapes"])
        here = assemble([cpu[name]], cpu["shapes"])
        for key, matrix in here.items():
            if name == "initial":
                assert torch.equal(there[key], matrix), key
                continue
            error = float((there[key] - matrix).norm() / matrix.norm())
            # Sums of some thousand fp32 terms in another order, through five layers.
            assert error < 1e-4, f"{key}: {error:.1e}"
