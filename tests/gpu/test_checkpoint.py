# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a CPU has saved goes on on a GPU, and the other way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import pytest
import torch

from tests.distributed.test_any_layout import everything
from tests.gpu.cases import MEDIUM
from tests.gpu.runner import run_jobs

JOBS = "tests.distributed.checkpoint_jobs"
OTHER = {"cpu": "cuda", "cuda": "cpu"}
RUNS = list(product(("adamw", "muonclip"), ("fp32", "bf16")))
SAVED, LAST = 3, 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was held at the save and at the resume, by the platform that saved, and by run."""
    folder = tmp_path_factory.mktemp("platforms")

    def run(platform: str, saver: str, function: str, **given: int) -> dict[str, list[Any]]:
        jobs = []
        for optimizer, dtype in RUNS:
            name = f"{optimizer} {dtype}"
            overrides = [f"optimizer.type={optimizer}", f"precision.dtype={dtype}"]
            overrides.append(f"run.folder={folder / saver / name}")
            kwargs = {"config_path": MEDIUM, "overrides": overrides, "last": LAST, **given}
            jobs.append({"name": name, "function": f"{JOBS}.{function}", "kwargs": kwargs})
        return run_jobs(jobs, 1, folder / f"{function} {saver}", platform=platform)

    def save(platform: str) -> dict[str, list[Any]]:
        return run(platform, platform, "save_and_go_on", save_after=SAVED)

    def resume(saver: str) -> dict[str, list[Any]]:
        return run(OTHER[saver], saver, "resume_and_go_on")

    with ThreadPoolExecutor() as starts:
        saved, resumed = (list(starts.map(one, OTHER)) for one in (save, resume))
    return {name: pair for name, *pair in zip(OTHER, saved, resumed, strict=True)}


@pytest.mark.gpu
@pytest.mark.parametrize(("optimizer", "dtype"), RUNS)
@pytest.mark.parametrize("saver", OTHER)
def test_another_platform_goes_on(
    saver: str, optimizer: str, dtype: str, runs: dict[str, Any]
) -> None:
    """Weights, moments and biases bit for bit; in fp32 the losses behind them, too.

    Transformer Engine fuses norms into products that the CPU's layers have apart, so that names and
    shapes of parameters differ; checkpoints have those of the model.
    """
    (saved,), (resumed,) = (one[f"{optimizer} {dtype}"] for one in runs[saver])
    for result in (saved, resumed):
        assert not isinstance(result, str), result
    before, after = everything([saved]), everything([resumed])
    assert before.keys() == after.keys() and resumed["step"] == SAVED
    for name, values in before.items():
        assert torch.equal(values, after[name]), name
    if dtype == "fp32":
        # The bound of test_gpu.py, for as many steps.
        assert resumed["losses"] == pytest.approx(saved["losses"], rel=1e-5)
