# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Predicted beside measured memory, and the plan of a run that does not fit."""

from __future__ import annotations

from k2_megatron.planner.job import job_of
from k2_megatron.planner.plan import make_plan
from k2_megatron.train.memory_check import MemoryCheck
from tests.planner.planner_helpers import GIB, k2_slice


def test_a_difference_above_a_tenth_is_a_warning() -> None:
    check = MemoryCheck(plan=make_plan(job_of(k2_slice()), place_matrices=False))
    peak = check.plan.peak_bytes
    assert check.compare(None) is None
    for factor, begins in (
        (1.0, "peak memory"),
        (1.09, "peak memory"),
        (1.12, "warning: peak memory"),
        (0.89, "warning: peak memory"),
    ):
        text = check.compare(int(peak * factor))
        assert text is not None and text.startswith(begins)
    assert f"{peak / GIB:.1f} GiB planned" in str(check.compare(int(peak)))
