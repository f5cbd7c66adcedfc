# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Import and export hold one tensor a thread, however large model, files and parts are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from k2_megatron.checkpoint.huggingface.config_writing import write_config_json
from k2_megatron.checkpoint.huggingface.exporting import Export, export
from k2_megatron.checkpoint.huggingface.names import hf_tensors
from k2_megatron.checkpoint.identity import model_matrices
from k2_megatron.config.loader import load_config
from tests.distributed.harness import ROOT
from tests.huggingface.releases import CONFIG, OVERRIDES

# 77 million parameters, 308 MB in fp32, none of its tensors more than 1 MB.
GIVEN = [
    *OVERRIDES,
    "model.moe_shared_expert_intermediate_size=256",
    "model.hidden_size=512",
    "model.num_experts=96",
    "model.moe_ffn_hidden_size=256",
]
# Of memory beyond the program with its imports: buffers, threads, what the allocator keeps. 10 MB
# were measured for an import, 8 MB for an export; a part held whole would be 308 MB, a shard 154.
BOUND_BYTES = 40 * 10**6
MEASURED = """
import sys
from pathlib import Path
import torch
from k2_megatron.checkpoint.huggingface import commands
from k2_megatron.cli import main

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.ones(256, 256).bfloat16().float()
before = kilobytes("VmRSS")
assert main(sys.argv[1:]) == 0
print("grown by", 1024 * (kilobytes("VmHWM") - before))
"""


def grown_by(*arguments: object) -> int:
    """Bytes by which a command's resident memory grew beyond what its imports take."""
    command = [sys.executable, "-c", MEASURED, "checkpoint", *map(str, arguments)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    return int(run.stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_model_or_files(tmp_path: Path) -> None:
    """Parts and shards that could hold the whole model."""
    config = load_config(CONFIG, GIVEN)
    shapes = model_matrices(config.model)
    sizes = [rows * cols for rows, cols in shapes.values()]
    assert sum(sizes) > 77e6 and max(sizes) < 200_000
    plan = Export(
        folder=tmp_path / "release",
        source="a test",
        config=write_config_json(config.model, dtype="bfloat16", context=64, like=None),
        tensors=hf_tensors(config.model),
        dtype=torch.bfloat16,
        shard_bytes=10**9,
    )
    export(plan, lambda key: torch.full(shapes[key], 0.5), workers=1)
    sets = [f"--set={one}" for one in (*GIVEN, f"run.folder={tmp_path}")]
    given = ("--workers", 2)
    assert grown_by("import-hf", plan.folder, CONFIG, *sets, *given) < BOUND_BYTES
    step = tmp_path / "small" / "checkpoints" / "step_00000000"
    assert grown_by("export-hf", step, tmp_path / "out", *given) < BOUND_BYTES
