# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""On a real GPU: the attention logits that Transformer Engine reports, and what asking costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.canonical import assemble
from tests.gpu.cases import MEDIUM
from tests.gpu.matrix import GRADIENT_BOUND, LOSS_BOUND
from tests.gpu.runner import run_jobs

JOBS = "tests.distributed.max_logit_jobs"
DTYPES = ("bf16", "fp32")

# Transformer Engine rounds to the dtype of its output, 2^-9 for bf16, what cuDNN found in fp32 from
# the same queries and keys; in fp32 it is a sum of 192 products in another order.
LOGIT = {"bf16": {"rtol": 2**-8, "atol": 1e-6}, "fp32": {"rtol": 1e-5, "atol": 1e-6}}


def job(name: str, function: str, dtype: str, **kwargs: Any) -> dict[str, Any]:
    """A job on the medium model."""
    options = {"config_path": MEDIUM, "overrides": [f"precision.dtype={dtype}"]}
    return {"name": name, "function": f"{JOBS}.{function}", "kwargs": {**options, **kwargs}}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of the jobs by name, all from one process."""
    jobs = []
    for dtype in DTYPES:
        jobs.append(
            job(
                f"record-{dtype}",
                "record_with_transformer_engine",
                dtype,
                evaluate_between=True,
            )
        )
        for recorded in (False, True):
            name = f"train-{dtype}-{recorded}"
            jobs.append(job(name, "train_recording", dtype, recorded=recorded, num_steps=3))
    found = run_jobs(jobs, 1, tmp_path_factory.mktemp("max_logits"))
    for ranks in found.values():
        assert not isinstance(ranks[0], str), ranks[0]
    return {name: ranks[0] for name, ranks in found.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_recorded_maxima_are_those_of_a_plain_computation(
    dtype: str, results: dict[str, Any]
) -> None:
    """From fp64 products of the same queries and keys, visible pairs and training alone."""
    result = results[f"record-{dtype}"]
    maxima, plain = result["maxima"][0], result["plain"]["visible"]
    assert sorted(plain) == [0, 1, 2, 3]
    for layer, values in plain.items():
        torch.testing.assert_close(maxima[layer].double(), values, **LOGIT[dtype])
    assert result["nothing"].isneginf().all(), "evaluation was recorded"
    assert result["forgotten"].isneginf().all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_training_is_the_same_with_and_without_recording(
    dtype: str, results: dict[str, Any]
) -> None:
    """Bit for bit in fp32; without recording Transformer Engine must find no FlashAttention.

    In bf16 cuDNN takes another kernel when it is asked for maxima, so first losses and gradients
    are within the bounds of the matrix: other roundings, the same numbers.
    """
    plain, recording = (results[f"train-{dtype}-{recorded}"] for recorded in (False, True))
    names = ("gradients", "parameters") if dtype == "fp32" else ("gradients",)
    for name in names:
        there = assemble([recording[name]], recording["shapes"])
        for key, matrix in assemble([plain[name]], plain["shapes"]).items():
            if dtype == "fp32":
                assert torch.equal(there[key], matrix), f"{name} of {key}"
                continue
            error = float((there[key] - matrix).norm() / matrix.norm().clamp(min=1e-12))
            assert error < GRADIENT_BOUND[dtype], f"{name} of {key}: {error:.1e}"
    if dtype == "fp32":
        assert recording["losses"] == plain["losses"]
        assert recording["grad_norms"] == plain["grad_norms"]
    assert recording["losses"][0] == pytest.approx(plain["losses"][0], rel=LOSS_BOUND[dtype])
