# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""On a real GPU: optimizer state in host memory changes no bit, with copies that come late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.cases import MEDIUM, MUON
from tests.gpu.runner import run_jobs

JOB = "tests.distributed.host_state_jobs.train"
OPTIMIZERS = {"adamw": (), "muonclip": MUON}
FRACTIONS = (0.0, 0.5, 1.0)


@pytest.mark.gpu
def test_state_in_host_memory_changes_no_bit(tmp_path: Path) -> None:
    """Four steps, one of them skipped, through a few buffers that cut the larger shards."""
    jobs: list[dict[str, Any]] = []
    for name, options in OPTIMIZERS.items():
        for fraction in FRACTIONS:
            moved = f"optimizer.optimizer_offload_fraction={fraction}"
            kwargs: dict[str, Any] = {"config_path": MEDIUM, "overrides": [*options, moved]}
            kwargs |= {"buffer_bytes": 2**18, "num_buffers": 6}
            jobs.append({"name": f"{name} {fraction}", "function": JOB, "kwargs": kwargs})
    found = run_jobs(jobs, 1, tmp_path)
    for (result,) in found.values():
        assert not isinstance(result, str), result
    for name in OPTIMIZERS:
        (none,) = found[f"{name} 0.0"]
        assert none["host_bytes"] == 0 and none["outcomes"][1][2]
        for fraction in FRACTIONS[1:]:
            (moved,) = found[f"{name} {fraction}"]
            assert moved["held_bytes"] > 0 and moved["moved_bytes"] > 0
            assert moved["outcomes"] == none["outcomes"]
            assert moved["num_updates"] == none["num_updates"]
            for key, place in (("parameters", 3), ("states", 2)):
                for one, other in zip(none[key], moved[key], strict=True):
                    assert one[:place] == other[:place]
                    same = torch.equal(one[place].cpu(), other[place].cpu())
                    assert same, f"{name} {fraction}: {key} {one[:place]}"
