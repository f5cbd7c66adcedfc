# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The one place that touches megatron-core's global parallel state."""

from __future__ import annotations

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from k2_megatron.parallel.topology import Axis, Topology


def initialize(
    *,
    tensor_size: int,
    pipeline_size: int,
    virtual_size: int,
    context_size: int,
    expert_size: int,
    expert_tensor_size: int,
    seed: int,
    timeout_seconds: float,
) -> Topology:
    """Build every process group and describe them; torch.distributed must be initialised.

    Also seeds megatron-core's dropout generators with `seed`.
    """
    parallel_state.initialize_model_parallel(
        tensor_size,
        pipeline_size,
        virtual_pipeline_model_parallel_size=virtual_size if virtual_size > 1 else None,
        context_parallel_size=context_size,
        expert_model_parallel_size=expert_size,
        expert_tensor_parallel_size=expert_tensor_size,
        distributed_timeout_minutes=timeout_seconds / 60,
        create_gloo_process_groups=False,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return Topology(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        virtual_size=virtual_size,
        tp=_axis(parallel_state.get_tensor_model_parallel_group()),
        cp=_axis(parallel_state.get_context_parallel_group()),
        dp=_axis(parallel_state.get_data_parallel_group()),
        pp=_axis(parallel_state.get_pipeline_model_parallel_group()),
        dp_cp=_axis(parallel_state.get_data_parallel_group(with_context_parallel=True)),
        tp_dp_cp=_axis(
            parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
        ),
        etp=_axis(parallel_state.get_expert_tensor_parallel_group()),
        ep=_axis(parallel_state.get_expert_model_parallel_group()),
        edp=_axis(parallel_state.get_expert_data_parallel_group()),
    )


def destroy() -> None:
    """End all groups but the whole world's, so that another layout can be initialised in the same
    process. Collective.

    megatron-core forgets its groups, but torch.distributed keeps them, and NCCL the buffers of
    each: some GB a layout.
    """
    parallel_state.destroy_model_parallel()
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)


def random_states() -> dict[str, torch.Tensor]:
    """States of megatron-core's dropout generators, by name."""
    return dict(tensor_parallel.get_cuda_rng_tracker().get_states())


def set_random_states(states: dict[str, torch.Tensor]) -> None:
    """Restore what `random_states` gave."""
    tensor_parallel.get_cuda_rng_tracker().set_states(states)


def _axis(group: dist.ProcessGroup) -> Axis:
    return Axis(size=group.size(), rank=group.rank(), group=group)
