# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""On real GPUs: the equality matrix, and the CPU and the GPU against each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.canonical import assemble
from tests.distributed.test_resume import assert_same_end
from tests.gpu.cases import EP, GATHER, MEDIUM, REDUCE, SMALL
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


@pytest.fixture(scope="module")
def both_platforms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same fp32 models trained on the GPU and on the CPU, by name of the model."""
    folder = tmp_path_factory.mktemp("platforms")
    jobs = [
        {
            "name": Path(config).stem,
            "function": "train",
            "kwargs": {
                "config_path": config,
                "overrides": ["precision.dtype=fp32"],
                "num_steps": 2,
            },
        }
        for config in (SMALL, MEDIUM)
    ]
    with ThreadPoolExecutor() as starts:
        gpu, cpu = starts.map(
            lambda platform: run_jobs(jobs, 1, folder / platform, platform=platform),
            ("cuda", "cpu"),
        )
    return {name: {"gpu": gpu[name][0], "cpu": cpu[name][0]} for name in gpu}


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["small", "medium"])
def test_cpu_and_gpu_agree_in_fp32(model: str, both_platforms: dict[str, dict[str, Any]]) -> None:
    """Transformer Engine's layers on the GPU, megatron-core's local ones on the CPU, tf32 off."""
    gpu, cpu = both_platforms[model]["gpu"], both_platforms[model]["cpu"]
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


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muonclip"])
def test_resume_equals_not_stopping_on_one_gpu(optimizer: str, tmp_path: Path) -> None:
    _assert_resume_equals_not_stopping(1, [f"optimizer.type={optimizer}"], tmp_path)


@pytest.mark.multi_gpu
def test_resume_equals_not_stopping_on_two_gpus(tmp_path: Path) -> None:
    _assert_resume_equals_not_stopping(2, [EP, REDUCE, GATHER], tmp_path)


def _assert_resume_equals_not_stopping(world_size: int, options: list[str], folder: Path) -> None:
    """Six steps, and three more after a resume in a new process, bit for bit."""
    kwargs = {"config_path": MEDIUM, "overrides": [*options, f"run.folder={folder}"], "last": 6}
    ends = []
    for name, rest in (
        ("whole", {"first": 1, "save_after": 3}),
        ("resumed", {"first": 4, "save_after": None}),
    ):
        job = {"name": name, "function": "train_and_save", "kwargs": {**kwargs, **rest}}
        ranks = run_jobs([job], world_size, folder / name)[name]
        for result in ranks:
            assert not isinstance(result, str), result
        ends.append(ranks)
    assert_same_end(*ends)
