# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The root of the configuration: one attribute for each section of the YAML."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import get_type_hints

from k2_megatron.config.checkpoint import CheckpointConfig
from k2_megatron.config.cluster import ClusterConfig
from k2_megatron.config.data import DataConfig
from k2_megatron.config.logging import LoggingConfig
from k2_megatron.config.memory import MemoryConfig
from k2_megatron.config.model import ModelConfig
from k2_megatron.config.optimizer import OptimizerConfig
from k2_megatron.config.option import Changes
from k2_megatron.config.parallel import ParallelConfig
from k2_megatron.config.precision import PrecisionConfig
from k2_megatron.config.run import RunConfig
from k2_megatron.config.schedule import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a run depends on. Made by `k2_megatron.config.loader.load_config`."""

    run: RunConfig
    model: ModelConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig
    data: DataConfig
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@cache
def sections() -> dict[str, type]:
    """The sections' dataclasses by name, in the order of `Config`."""
    return get_type_hints(Config)


def value_of(config: Config, key: str) -> object:
    """The value of a dotted key such as `model.num_layers` or `schedule.phases[1].parallel.X`."""
    value: object = config
    for part in key.split("."):
        name, _, index = part.partition("[")
        holder = value
        value = getattr(holder, name, None)
        if isinstance(holder, Changes):
            value = dict(holder.given).get(name)
        if index:
            assert isinstance(value, tuple)
            value = value[int(index.removesuffix("]"))]
    return value
