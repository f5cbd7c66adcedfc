# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The model of buckets and shards, and the planner's bytes, against the engine's own buffers."""

from __future__ import annotations

from pathlib import Path

import pytest

from k2_megatron.config.loader import load_config
from k2_megatron.parallel.buckets import shares
from k2_megatron.planner.job import Job
from k2_megatron.planner.states import chunk_buckets, chunk_entries, rank_states
from tests.distributed.harness import run_ranks

SMALL = Path(__file__).parents[1] / "distributed" / "small.yaml"
LAYOUTS = {
    "one process": (1, []),
    "dp3": (3, ["schedule.global_batch_size=6"]),
    "ep2, dp4": (4, ["parallel.expert_model_parallel_size=2"]),
    "tp2, ep2, bf16": (
        4,
        [
            "parallel.tensor_model_parallel_size=2",
            "parallel.expert_model_parallel_size=2",
            "precision.dtype=bf16",
        ],
    ),
    "pp2, vpp2, mtp, bf16": (
        2,
        [
            "parallel.pipeline_model_parallel_size=2",
            "parallel.virtual_pipeline_model_parallel_size=2",
            "model.mtp_num_layers=1",
            "model.q_lora_rank=null",
            "precision.dtype=bf16",
        ],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_the_engines_buffers(name: str) -> None:
    """Every interval of every rank, every bucket's size, parameters and state to the byte."""
    world_size, overrides = LAYOUTS[name]
    overrides = ["optimizer.type=muonclip", *overrides]
    job = Job(config=load_config(SMALL, overrides), num_gpus=world_size, on_gpu=False)
    ranks = run_ranks(
        "tests.parallel.bucket_jobs.real_buffers",
        world_size,
        config_path=str(SMALL),
        overrides=overrides,
    )
    degrees = job.degrees
    for real in ranks:
        place = real["ranks"]
        owned, sizes = [], []
        for chunk, stage in enumerate(job.layout.chunks(place["pp"])):
            data_rank = place["dp_cp"] * degrees.tensor + place["tp"]
            entries = chunk_entries(job, stage, data_rank=data_rank)
            buckets = chunk_buckets(job, entries, pipeline_rank=place["pp"], chunk=chunk)
            for kind, axis, ways in zip(
                buckets, ("dp_cp", "edp"), (degrees.data_context, degrees.expert_data), strict=True
            ):
                sizes += [bucket.size for bucket in kind]
                for bucket in kind:
                    owned += [
                        (share.entry.name, share.begin, share.end)
                        for share in shares(bucket, ways, place[axis])
                    ]
        assert sizes == real["sizes"]
        assert owned == real["owned"]
        states = rank_states(job, place["pp"])
        assert states.parameters == real["parameters"]
        assert states.parameter_bytes + states.gradient_bytes == real["buffer_bytes"]
    for stage in range(degrees.pipeline):
        fullest = max(real["state_bytes"] for real in ranks if real["ranks"]["pp"] == stage)
        assert rank_states(job, stage).optimizer_bytes == fullest
