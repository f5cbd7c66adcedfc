# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Everything a run is made of, built from its configuration in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads

from k2_megatron.config.config import Config
from k2_megatron.config.learning_rate import Course, courses_of, learning_rate
from k2_megatron.config.phases import (
    Phase,
    first_step_here,
    last_step_here,
    most_tokens_here,
    phase_at,
    phases_of,
)
from k2_megatron.config.resolve import WorldSizes, resolve_world
from k2_megatron.model.attention_layers import transformer_layers
from k2_megatron.model.build import Model, build_model
from k2_megatron.offload.hooks import SlotTimers
from k2_megatron.parallel import megatron_state
from k2_megatron.parallel.optimizer import Optimizer
from k2_megatron.parallel.router_bias import RoutedLayer, RouterBias
from k2_megatron.parallel.topology import Topology
from k2_megatron.platform.base import Platform
from k2_megatron.train.optimizers import build_optimizer


@dataclass(frozen=True, kw_only=True)
class Session:
    """The parts of a run on this rank, as they are in one of its phases.

    Attributes:
        run_config: of the whole run.
        phases: all of them.
        phase: the one that the session stands in.
        sizes: data-parallel sizes and number of micro-batches.
        courses: of the learning rate.
    """

    run_config: Config
    phases: tuple[Phase, ...]
    phase: Phase
    platform: Platform
    topology: Topology
    sizes: WorldSizes
    model: Model
    optimizer: Optimizer
    router_bias: RouterBias
    courses: Sequence[Course]

    @property
    def config(self) -> Config:
        """Of the phase."""
        return self.phase.config

    @cached_property
    def first_step_here(self) -> int:
        """The first step of the phases that these processes can train: a rollback may reach it."""
        return first_step_here(self.phases, self.phase.first_step)

    @cached_property
    def last_step_here(self) -> int:
        """The last step of the phases that these processes can train."""
        return last_step_here(self.phases, self.phase.first_step)

    def at(self, step: int) -> Session:
        """The session in the phase of a step; only numbers differ from this one's."""
        phase = phase_at(self.phases, step)
        if phase is self.phase:
            return self
        sizes = resolve_world(phase.config, self.topology.world_size)
        return replace(self, phase=phase, sizes=sizes)

    def set_rates(self, step: int) -> float:
        """Give optimizer and router biases the rates of a step of the phase; the learning rate."""
        rate = learning_rate(self.courses, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = self.config.optimizer.weight_decay * group.get("wd_mult", 1.0)
        self.router_bias.rate = self.config.model.moe_router_bias_update_rate
        return rate


def build_session(
    config: Config,
    platform: Platform,
    world_size: int,
    phases: tuple[Phase, ...] | None = None,
    phase: Phase | None = None,
) -> Session:
    """Build groups, model and optimizer; torch.distributed must be initialised.

    Args:
        config: of the run.
        platform: prepared for this rank.
        world_size: number of ranks.
        phases: of the run, if something was added to their configurations.
        phase: for which of them to build; None: the first.

    Raises:
        TopologyError: the number of processes does not fit the layout.
    """
    phases = phases_of(config) if phases is None else phases
    phase = phases[0] if phase is None else phase
    here = phase.config
    parallel = here.parallel
    sizes = resolve_world(here, world_size)
    assert parallel.expert_tensor_parallel_size is not None, "the configuration is not resolved"
    topology = megatron_state.initialize(
        tensor_size=parallel.tensor_model_parallel_size,
        pipeline_size=parallel.pipeline_model_parallel_size,
        virtual_size=parallel.virtual_pipeline_model_parallel_size or 1,
        context_size=parallel.context_parallel_size,
        expert_size=parallel.expert_model_parallel_size,
        expert_tensor_size=parallel.expert_tensor_parallel_size,
        seed=here.run.seed,
        timeout_seconds=here.run.distributed_timeout_seconds,
    )
    most_tokens = most_tokens_here(phases, phase.first_step)
    model = build_model(here, topology, platform, most_tokens=most_tokens)
    optimizer = build_optimizer(here, model, topology, platform.device)
    router_bias = RouterBias(
        _routed_layers(model, topology), topology, rate=here.model.moe_router_bias_update_rate
    )
    _connect(model, router_bias)
    return Session(
        run_config=config,
        phases=phases,
        phase=phase,
        platform=platform,
        topology=topology,
        sizes=sizes,
        model=model,
        optimizer=optimizer,
        router_bias=router_bias,
        courses=courses_of(config),
    )


def _routed_layers(model: Model, topology: Topology) -> list[RoutedLayer]:
    """This rank's routers with the global indices of their layers."""
    return [
        RoutedLayer(index=index, router=layer.mlp.router)
        for index, layer in transformer_layers(model, topology)
        if hasattr(layer.mlp, "router")
    ]


def _connect(model: Model, router_bias: RouterBias) -> None:
    """Give the schedule its hooks: gradient reduction, and overlap where it is on."""

    def finalize(chunks: list[torch.nn.Module], *args: Any, **kwargs: Any) -> None:
        router_bias.collect()
        finalize_model_grads(chunks, *args, **kwargs)

    config, chunks = model.config, model.chunks
    config.finalize_model_grads_func = finalize
    if model.offload is not None and not config.overlap_moe_expert_parallel_comm:
        config.timers = SlotTimers(model.offload)  # else the plans of forwards tell it
    ddp = chunks[0].ddp_config
    if ddp.overlap_grad_reduce:
        config.no_sync_func = _one_or_list([chunk.no_sync for chunk in chunks])
    if ddp.overlap_param_gather and len(chunks) > 1:
        config.param_sync_func = [chunk.start_param_sync for chunk in chunks]


def _one_or_list(functions: list[Any]) -> Any:
    """The form that the plain and the interleaved schedule expect."""
    return functions if len(functions) > 1 else functions[0]
