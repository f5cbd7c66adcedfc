# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Automatic values, and the sizes that a number of processes gives."""

import pytest
from config_helpers import load

from k2_megatron.config.resolve import (
    WorldSizes,
    expert_tensor_parallel_size_of,
    fitting_world_sizes,
    resolve,
    resolve_world,
    sequence_parallel_of,
)
from k2_megatron.errors import TopologyError


def degrees(**sizes: int) -> list[str]:
    """Overrides for the degrees given by their short names."""
    names = {
        "tp": "parallel.tensor_model_parallel_size",
        "pp": "parallel.pipeline_model_parallel_size",
        "vpp": "parallel.virtual_pipeline_model_parallel_size",
        "cp": "parallel.context_parallel_size",
        "ep": "parallel.expert_model_parallel_size",
        "etp": "parallel.expert_tensor_parallel_size",
        "gbs": "schedule.global_batch_size",
        "mbs": "schedule.micro_batch_size",
    }
    return [f"{names[name]}={size}" for name, size in sizes.items()]


@pytest.mark.parametrize(
    ("sizes", "sequence", "expert_tensor"),
    [
        ({}, False, 1),
        ({"tp": 2}, True, 2),
        ({"tp": 2, "ep": 2}, True, 1),
        ({"tp": 2, "ep": 2, "etp": 2}, True, 2),
        ({"ep": 2}, False, 1),
    ],
)
def test_automatic_values(tmp_path, sizes, sequence, expert_tensor):
    config = load(tmp_path, *degrees(**sizes))
    assert config.parallel.sequence_parallel is sequence
    assert config.parallel.expert_tensor_parallel_size == expert_tensor
    assert sequence_parallel_of(config.parallel) is sequence
    assert expert_tensor_parallel_size_of(config.parallel) == expert_tensor
    assert resolve(config) == config


@pytest.mark.parametrize(
    ("sizes", "world_size", "data", "expert_data", "num_microbatches"),
    [
        ({}, 1, 1, 1, 8),
        ({}, 8, 8, 8, 1),
        ({"mbs": 2}, 2, 2, 2, 2),
        ({"ep": 4}, 8, 8, 2, 1),
        ({"tp": 2, "pp": 2, "ep": 2}, 8, 2, 2, 4),
        ({"tp": 4, "ep": 2, "etp": 2}, 4, 1, 1, 8),
        ({"cp": 2}, 4, 2, 4, 4),
        ({"pp": 2, "vpp": 2}, 4, 2, 2, 4),
    ],
)
def test_world_sizes(tmp_path, sizes, world_size, data, expert_data, num_microbatches):
    config = load(tmp_path, *degrees(**sizes))
    assert resolve_world(config, world_size) == WorldSizes(
        data_parallel_size=data,
        expert_data_parallel_size=expert_data,
        num_microbatches=num_microbatches,
    )
    assert world_size in fitting_world_sizes(config)


def refusal(config, world_size: int) -> str:
    with pytest.raises(TopologyError) as caught:
        resolve_world(config, world_size)
    return str(caught.value)


def test_processes_that_are_no_multiple_are_told_for_dense_and_experts(tmp_path):
    config = load(tmp_path, *degrees(tp=2, pp=2, ep=4, etp=1, gbs=24))
    assert refusal(config, 6) == (
        "6 processes do not fit the parallel layout:\n"
        "  6 is not a multiple of 4 = tensor_model_parallel_size 2 x "
        "pipeline_model_parallel_size 2 x context_parallel_size 1\n"
        "  6 is not a multiple of 8 = expert_tensor_parallel_size 1 x "
        "expert_model_parallel_size 4 x pipeline_model_parallel_size 2\n"
        "numbers of processes that fit: 8, 16, 24, 32, 48, 96"
    )


def test_batch_that_data_parallelism_does_not_divide(tmp_path):
    config = load(tmp_path, *degrees(mbs=2))
    assert refusal(config, 3) == (
        "3 processes do not fit the parallel layout:\n"
        "  schedule.global_batch_size 8 is not a multiple of schedule.micro_batch_size 2 x "
        "data parallel size 3\n"
        "numbers of processes that fit: 1, 2, 4"
    )


def test_micro_batches_that_interleaving_cannot_take(tmp_path):
    config = load(tmp_path, *degrees(pp=2, vpp=2, gbs=6))
    assert refusal(config, 4) == (
        "4 processes do not fit the parallel layout:\n"
        "  3 micro-batches (schedule.global_batch_size 6 / schedule.micro_batch_size 1 / data "
        "parallel size 2) are not a multiple of pipeline_model_parallel_size 2, which "
        "interleaving (virtual_pipeline_model_parallel_size) needs\n"
        "numbers of processes that fit: 2, 6"
    )
    without = load(tmp_path, *degrees(pp=2, gbs=6))
    assert resolve_world(without, 4).num_microbatches == 3


def test_one_process_and_none(tmp_path):
    config = load(tmp_path, *degrees(tp=2))
    assert refusal(config, 1).startswith("1 process does not fit the parallel layout:\n  1 is not")
    assert "0 is not a multiple of 2" in refusal(config, 0)


def test_many_fitting_numbers_are_cut_to_the_nearest(tmp_path):
    config = load(tmp_path, *degrees(gbs=1024))
    assert refusal(config, 100).endswith(
        "numbers of processes that fit: 1, 2, 4, 8, 16, 32, 64, 128 are the nearest"
    )


def test_fitting_world_sizes_are_exactly_those_that_resolve(tmp_path):
    config = load(tmp_path, *degrees(tp=2, pp=2, vpp=2, ep=2, gbs=24))

    def resolves(world_size: int) -> bool:
        try:
            resolve_world(config, world_size)
        except TopologyError:
            return False
        return True

    assert fitting_world_sizes(config) == [n for n in range(1, 24 * 4 + 9) if resolves(n)]
    assert fitting_world_sizes(config) == [4, 8, 12, 16, 24, 48]


@pytest.mark.parametrize(
    ("world_size", "data", "expert_data", "num_microbatches"),
    [(256, 16, 1, 1024), (512, 32, 2, 512), (2048, 128, 8, 128)],
)
def test_kimi_k2_on_multiples_of_256_devices(
    tmp_path, world_size, data, expert_data, num_microbatches
):
    """PP 16 x EP 16: any multiple of 32 nodes trains, and only data parallelism changes."""
    config = load(tmp_path, "model.preset=kimi-k2", *degrees(pp=16, vpp=2, ep=16, gbs=16384))
    sizes = resolve_world(config, world_size)
    assert sizes.data_parallel_size == data
    assert sizes.expert_data_parallel_size == expert_data
    assert sizes.num_microbatches == num_microbatches
