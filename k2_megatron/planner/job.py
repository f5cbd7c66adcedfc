# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a plan is made for: a configuration on a number of GPUs of one kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from k2_megatron.config.config import Config
from k2_megatron.config.resolve import (
    WorldSizes,
    expert_tensor_parallel_size_of,
    fitting_world_sizes,
    resolve_world,
)
from k2_megatron.errors import TopologyError
from k2_megatron.memory.policy import PRESETS, Policies
from k2_megatron.memory.resolve import layer_policies
from k2_megatron.model.shape import model_shape, pipeline_layout
from k2_megatron.parallel.canonical import ModelShape
from k2_megatron.parallel.layout import PipelineLayout
from k2_megatron.planner.hardware import GPUS, GPUS_PER_NODE, OUTSIDE_ALLOCATOR_BYTES, Gpu

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True, kw_only=True)
class Degrees:
    """Sizes of every axis of the process mesh."""

    tensor: int
    context: int
    pipeline: int
    virtual: int
    expert: int
    expert_tensor: int
    data: int
    expert_data: int

    @property
    def data_context(self) -> int:
        """Ranks that share a dense buffer."""
        return self.data * self.context

    @property
    def stage(self) -> int:
        """Ranks of one pipeline stage."""
        return self.tensor * self.data_context


@dataclass(frozen=True, kw_only=True)
class Job:
    """A configuration on GPUs.

    Attributes:
        config: resolved.
        num_gpus: one process each.
        gpu: their kind.
        gpus_per_node: how many share a machine.
        policies: of the activations, by tensor.
        by_layer: where layers differ, the policies of each, MTP layers behind the others; empty:
            `policies` are those of all.
        imbalance: tokens of the fullest expert-parallel rank over the mean of all.
        on_gpu: Transformer Engine's layers; megatron-core's own otherwise.
        gate_after_down: the experts' outputs are stored because their weights are applied to them,
            as in DeepSeek's code; megatron-core applies them before the down-projection.
    """

    config: Config
    num_gpus: int
    gpu: Gpu = GPUS["H100"]
    gpus_per_node: int = GPUS_PER_NODE
    policies: Policies = field(default_factory=dict)
    by_layer: tuple[Policies, ...] = ()
    imbalance: float = 1.0
    on_gpu: bool = True
    gate_after_down: bool = False

    @cached_property
    def sizes(self) -> WorldSizes:
        """Data-parallel sizes and micro-batches."""
        return resolve_world(self.config, self.num_gpus)

    @cached_property
    def degrees(self) -> Degrees:
        """Sizes of all axes."""
        parallel, sizes = self.config.parallel, self.sizes
        return Degrees(
            tensor=parallel.tensor_model_parallel_size,
            context=parallel.context_parallel_size,
            pipeline=parallel.pipeline_model_parallel_size,
            virtual=parallel.virtual_pipeline_model_parallel_size or 1,
            expert=parallel.expert_model_parallel_size,
            expert_tensor=expert_tensor_parallel_size_of(parallel),
            data=sizes.data_parallel_size,
            expert_data=sizes.expert_data_parallel_size,
        )

    @cached_property
    def layout(self) -> PipelineLayout:
        """Which layers live on which stage."""
        return _layout(self.config)

    @cached_property
    def shape(self) -> ModelShape:
        """Sizes of the model's matrices."""
        return model_shape(self.config.model)

    def policies_of(self, layer: int) -> Policies:
        """Policies of one layer; MTP layers are counted behind the decoder's."""
        return self.by_layer[layer] if self.by_layer else self.policies

    @property
    def width(self) -> int:
        """Bytes of a parameter and of an activation's element."""
        return DTYPE_BYTES[self.config.precision.dtype]

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch, over all ranks that share it."""
        schedule = self.config.schedule
        return schedule.micro_batch_size * schedule.seq_length

    @property
    def usable_bytes(self) -> int:
        """Of a GPU's memory, what PyTorch can have."""
        return self.gpu.memory_bytes - OUTSIDE_ALLOCATOR_BYTES

    @property
    def has_fused_attention(self) -> bool:
        """Attention never holds its probabilities: a 16-bit kernel of Transformer Engine."""
        return self.on_gpu and self.width == 2


@lru_cache(maxsize=64)
def _layout(config: Config) -> PipelineLayout:
    return pipeline_layout(config)


def job_of(
    config: Config,
    num_gpus: int | None = None,
    *,
    gpu: Gpu = GPUS["H100"],
    gpus_per_node: int = GPUS_PER_NODE,
    imbalance: float = 1.0,
    on_gpu: bool = True,
) -> Job:
    """What `plan` and the trainer plan: the configuration and nothing beyond it.

    Args:
        num_gpus: None for the smallest number that runs the configuration.

    Raises:
        TopologyError: the number of GPUs does not fit the layout.
    """
    if num_gpus is None:
        fitting = fitting_world_sizes(config)
        if not fitting:
            raise TopologyError("no number of GPUs fits the configuration")
        num_gpus = fitting[0]
    resolve_world(config, num_gpus)
    return Job(
        config=config,
        num_gpus=num_gpus,
        gpu=gpu,
        gpus_per_node=gpus_per_node,
        policies=PRESETS[config.memory.preset],
        by_layer=layer_policies(config) if config.memory.tensors else (),
        imbalance=imbalance,
        on_gpu=on_gpu,
    )
