# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Everything a run is made of, built from its configuration in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from k2_megatron.config.config import Config
from k2_megatron.config.resolve import WorldSizes, resolve_world
from k2_megatron.model.attention_layers import transformer_layers
from k2_megatron.model.build import Model, build_model
from k2_megatron.parallel import megatron_state
from k2_megatron.parallel.optimizer import Optimizer
from k2_megatron.parallel.router_bias import RoutedLayer, RouterBias
from k2_megatron.parallel.topology import Topology
from k2_megatron.platform.base import Platform
from k2_megatron.train.optimizers import build_optimizer


@dataclass(frozen=True, kw_only=True)
class Session:
    """The parts of a run on this rank.

    Attributes:
        sizes: data-parallel sizes and number of micro-batches.
        schedule: sets learning rate and weight decay of every parameter group.
    """

    config: Config
    platform: Platform
    topology: Topology
    sizes: WorldSizes
    model: Model
    optimizer: Optimizer
    router_bias: RouterBias
    schedule: OptimizerParamScheduler


def build_session(config: Config, platform: Platform, world_size: int) -> Session:
    """Build groups, model, optimizer and schedule; torch.distributed must be initialised.

    Raises:
        TopologyError: the number of processes does not fit the layout.
    """
    sizes = resolve_world(config, world_size)
    parallel = config.parallel
    assert parallel.expert_tensor_parallel_size is not None, "the configuration is not resolved"
    topology = megatron_state.initialize(
        tensor_size=parallel.tensor_model_parallel_size,
        pipeline_size=parallel.pipeline_model_parallel_size,
        virtual_size=parallel.virtual_pipeline_model_parallel_size or 1,
        context_size=parallel.context_parallel_size,
        expert_size=parallel.expert_model_parallel_size,
        expert_tensor_size=parallel.expert_tensor_parallel_size,
        seed=config.run.seed,
        timeout_seconds=config.run.distributed_timeout_seconds,
    )
    model = build_model(config, topology, platform)
    optimizer = build_optimizer(config, model, topology, platform.device)
    router_bias = RouterBias(
        _routed_layers(model, topology), topology, rate=config.model.moe_router_bias_update_rate
    )
    _connect(model, router_bias)
    return Session(
        config=config,
        platform=platform,
        topology=topology,
        sizes=sizes,
        model=model,
        optimizer=optimizer,
        router_bias=router_bias,
        schedule=_build_schedule(config, optimizer),
    )


def _build_schedule(config: Config, optimizer: Optimizer) -> OptimizerParamScheduler:
    schedule, decay = config.schedule, config.optimizer.weight_decay
    style = schedule.lr_decay_style
    min_lr = 0.0 if style == "constant" else schedule.min_lr
    for group in optimizer.param_groups:
        group["max_lr"], group["min_lr"] = schedule.lr, min_lr
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=schedule.lr,
        min_lr=min_lr,
        lr_warmup_steps=schedule.lr_warmup_steps,
        lr_decay_steps=schedule.train_steps,
        lr_decay_style="WSD" if style == "wsd" else style,
        wsd_decay_steps=schedule.lr_wsd_decay_steps,
        lr_wsd_decay_style="cosine" if style == "wsd" else None,
        start_wd=decay,
        end_wd=decay,
        wd_incr_steps=schedule.train_steps,
        wd_incr_style="constant",
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
    ddp = chunks[0].ddp_config
    if ddp.overlap_grad_reduce:
        config.no_sync_func = _one_or_list([chunk.no_sync for chunk in chunks])
    if ddp.overlap_param_gather and len(chunks) > 1:
        config.param_sync_func = [chunk.start_param_sync for chunk in chunks]


def _one_or_list(functions: list[Any]) -> Any:
    """The form that the plain and the interleaved schedule expect."""
    return functions if len(functions) > 1 else functions[0]
