# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Cross-field rules about activation memory. Each function is named for what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from k2_megatron.config.config import Config
from k2_megatron.config.memory import budgets_of, names_host
from k2_megatron.config.refusal import Refusal
from k2_megatron.config.rules_parallel import refuses_layout
from k2_megatron.errors import ConfigError


def _told(config: Config, kind: str) -> Iterable[Refusal]:
    """What the resolver finds, of one kind; nothing where the layout itself is wrong."""
    # It builds on the configuration, whose modules must not need it in turn.
    from k2_megatron.memory.resolve import findings

    if not config.memory.tensors:
        return
    try:
        found = list(findings(config))
    except ConfigError:
        return
    for one in found:
        if one.kind == kind:
            yield Refusal(("memory.tensors",), one.allowed, one.reason)


def refuse_activations_that_do_not_exist(config: Config) -> Iterable[Refusal]:
    """A misspelt name would change nothing."""
    return _told(config, "name")


def refuse_memory_of_layers_that_do_not_exist(config: Config) -> Iterable[Refusal]:
    """Layers are numbered over the whole model, stages are pipeline ranks."""
    return _told(config, "range")


def refuse_policies_that_an_activation_cannot_have(config: Config) -> Iterable[Refusal]:
    """What is needed to rebuild the others stays."""
    return _told(config, "policy")


def refuse_memory_policies_without_effect(config: Config) -> Iterable[Refusal]:
    """A policy that changes nothing misleads whoever reads the file."""
    return _told(config, "effect")


def refuse_activations_that_cannot_be_rebuilt(config: Config) -> Iterable[Refusal]:
    """What is rebuilt together has one policy, and nothing is rebuilt from rounded numbers."""
    return _told(config, "rebuild")


def refuse_host_memory_where_nothing_waits(config: Config) -> Iterable[Refusal]:
    """Leaving and coming back takes a slot or a layer each: backward may come too soon."""
    from k2_megatron.planner.offload import can_travel  # it builds on the configuration

    # Of a layout that is wrong itself another rule tells.
    if not names_host(config.memory) or refuses_layout(config):
        return
    try:
        if can_travel(config):
            return
    except ConfigError:
        return
    by_preset = config.memory.preset == "k2-full"
    yield Refusal(
        (
            "memory.preset" if by_preset else "memory.tensors",
            "parallel.pipeline_model_parallel_size",
            "parallel.virtual_pipeline_model_parallel_size",
            "parallel.overlap_moe_expert_parallel_comm",
        ),
        "none, k2 or k2-lean" if by_preset else "no host and no fp8+host",
        "backward follows forward so soon that nothing would leave; that takes a pipeline of 3 "
        "stages, or of 2 with virtual stages, or, without that overlap, 3 layers in a chunk",
    )


def refuse_host_budgets_that_are_not_one_for_each_stage(config: Config) -> Iterable[Refusal]:
    """One for all or one for each, and not nothing for all."""
    budgets, stages = budgets_of(config.memory.host_budget), config.parallel
    count = stages.pipeline_model_parallel_size
    if len(budgets) > 1 and len(budgets) != count:
        yield Refusal(
            ("memory.host_budget", "parallel.pipeline_model_parallel_size"),
            f"one budget or {count}",
            "each pipeline stage has one",
        )
    elif budgets and not any(one.share or one.nbytes for one in budgets):
        yield Refusal(("memory.host_budget",), "a budget above 0", "no stage has room for anything")


MEMORY_RULES: tuple[Callable[[Config], Iterable[Refusal]], ...] = (
    refuse_activations_that_do_not_exist,
    refuse_memory_of_layers_that_do_not_exist,
    refuse_policies_that_an_activation_cannot_have,
    refuse_memory_policies_without_effect,
    refuse_activations_that_cannot_be_rebuilt,
    refuse_host_memory_where_nothing_waits,
    refuse_host_budgets_that_are_not_one_for_each_stage,
)
