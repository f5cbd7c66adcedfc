# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Run the matrix and compare: python -m tests.gpu.matrix [--gpus 1|2] [--only REGEX].

The reference of every case is one GPU; a case that names another with the same computation must
also equal that bit for bit.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.distributed.canonical import assemble
from tests.gpu.cases import FP32, ONE_GPU, TWO_GPUS, Case
from tests.gpu.runner import run_jobs

# bf16 has 8 bits: one rounding is 2^-9. First-step gradients of another layout differ by sums of
# activations rounded in another order; the norm of the difference stays within a few roundings of
# the norm of the matrix. What is silently wrong differs by 10 % and more.
GRADIENT_BOUND = {"bf16": 0.03, "fp32": 1e-4}
LOSS_BOUND = {"bf16": 2e-3, "fp32": 1e-5}
# After three steps, of how far a matrix has moved. Only fp32 is bounded: in bf16 a routing tie that
# falls the other way in the second step is a real difference. AdamW and Newton-Schulz make more of
# small gradients and small singular values, up to 485 times for Muon.
MOVE_BOUND = 1e-2


@dataclass(frozen=True)
class Row:
    """One case compared with one GPU."""

    name: str
    dtype: str
    loss_error: float
    norm_error: float
    worst_error: float
    worst_key: str
    move_error: float
    bit_equal: str
    failure: str = ""
    gradient_bound: float | None = None

    @property
    def passed(self) -> bool:
        """Within the bounds, and bit-equal where it must be."""
        bound = self.gradient_bound or GRADIENT_BOUND[self.dtype]
        bounded = (
            self.loss_error <= LOSS_BOUND[self.dtype]
            and self.norm_error <= bound
            and self.worst_error <= bound
            and (self.dtype == "bf16" or self.move_error <= MOVE_BOUND)
        )
        return not self.failure and bounded and self.bit_equal != "NO"

    def __str__(self) -> str:
        verdict = "ok  " if self.passed else "FAIL"
        if self.failure:
            return f"{verdict} {self.name:34s} {self.failure}"
        return (
            f"{verdict} {self.name:34s} {self.dtype} loss {self.loss_error:.1e}  norm "
            f"{self.norm_error:.1e}  gradients {self.worst_error:.1e} ({self.worst_key})  "
            f"moved {self.move_error:.1e}  bit-equal {self.bit_equal}"
        )


def run_matrix(
    num_gpus: int, folder: Path, timeout_seconds: float = 420, only: str = ""
) -> list[Row]:
    """Every case that fits on `num_gpus` GPUs, compared.

    Args:
        only: regular expression; cases whose name it finds, and those they are compared with.
    """
    cases = [*ONE_GPU, *(TWO_GPUS if num_gpus > 1 else ())]
    chosen = [case for case in cases if re.search(only, case.name)]
    needed = {name for case in chosen for name in (case.name, case.reference, case.same_as)}
    cases = [case for case in cases if case.name in needed]
    results: dict[str, list[Any]] = {}

    def run(world_size: int) -> dict[str, list[Any]]:
        jobs = [case.job() for case in cases if case.world_size == world_size]
        return run_jobs(
            jobs, world_size, folder / f"gpus_{world_size}", timeout_seconds=timeout_seconds
        )

    # The models are small: one GPU holds a reference and a rank of the matrix at once.
    with ThreadPoolExecutor() as starts:
        for found in starts.map(run, range(1, num_gpus + 1)):
            results |= found
    return [_compare(case, results) for case in cases]


def _compare(case: Case, results: dict[str, list[Any]]) -> Row:
    dtype = "fp32" if FP32 in case.options else "bf16"
    one = results[case.reference][0]
    if isinstance(one, str):
        return Row(case.name, dtype, 0, 0, 0, "", 0, "-", f"its reference failed: {one[:3000]}")
    right = assemble([one["gradients"]], one["shapes"])
    ranks = results[case.name]
    failed = [result for result in ranks if isinstance(result, str)]
    if failed:
        return Row(case.name, dtype, 0, 0, 0, "", 0, "-", failed[0][:3000])
    try:
        found = assemble([result["gradients"] for result in ranks], one["shapes"])
        moved = assemble([result["parameters"] for result in ranks], one["shapes"])
    except AssertionError as error:
        return Row(case.name, dtype, 0, 0, 0, "", 0, "-", str(error))
    errors = {
        key: float((found[key] - matrix).norm() / matrix.norm().clamp(min=1e-12))
        for key, matrix in right.items()
    }
    worst = max(errors, key=lambda key: errors[key])
    loss_error = abs(ranks[0]["losses"][0] / one["losses"][0] - 1)
    norm_error = abs(ranks[0]["grad_norms"][0] / one["grad_norms"][0] - 1)
    same = "-" if case.same_as is None else _bit_equal(ranks, results[case.same_as])
    begun, ended = (assemble([one[name]], one["shapes"]) for name in ("initial", "parameters"))
    move_error = max(
        float((moved[key] - ended[key]).norm() / (ended[key] - begun[key]).norm().clamp(min=1e-12))
        for key in ended
    )
    return Row(
        case.name,
        dtype,
        loss_error,
        norm_error,
        errors[worst],
        worst,
        move_error,
        same,
        gradient_bound=case.gradient_bound,
    )


def _bit_equal(ranks: list[Any], others: list[Any]) -> str:
    """Whether first gradients, and losses and parameters of all steps, are the same."""
    for one, other in zip(ranks, others, strict=True):
        if isinstance(other, str) or one["losses"] != other["losses"]:
            return "NO"
        for name in ("gradients", "parameters"):
            mine = {(key, rows, cols): values for key, rows, cols, values in one[name]}
            theirs = {(key, rows, cols): values for key, rows, cols, values in other[name]}
            if mine.keys() != theirs.keys() or not all(
                torch.equal(values, theirs[place]) for place, values in mine.items()
            ):
                return "NO"
    return "yes"


def main() -> int:
    """Print the table; exit code 1 when a case fails."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpus", type=int, default=torch.cuda.device_count(), choices=(1, 2))
    parser.add_argument("--timeout-seconds", type=float, default=420)
    parser.add_argument("--only", default="", help="regular expression of cases")
    parser.add_argument("--logs", type=Path, help="keep the ranks' logs and results in this folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        rows = run_matrix(args.gpus, args.logs or Path(folder), args.timeout_seconds, args.only)
    print(f"{torch.cuda.get_device_name()} x {args.gpus}, PyTorch {torch.__version__}")
    for row in rows:
        print(row)
    return int(not all(row.passed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
