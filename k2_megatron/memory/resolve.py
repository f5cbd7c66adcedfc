# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""From the preset and its changes to the policy of every tensor of every layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from k2_megatron.config.config import Config
from k2_megatron.config.memory import TensorPolicyConfig
from k2_megatron.config.numbers import Numbers
from k2_megatron.memory.policy import MLA_UP, PRESETS, Policies, Policy, policy_of
from k2_megatron.memory.tensors import ACTIVATIONS
from k2_megatron.model.shape import model_shape, pipeline_layout
from k2_megatron.parallel.canonical import ModelShape


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong with `memory.tensors`.

    Attributes:
        kind: "name", "policy", "range", "effect" or "rebuild".
        allowed: what may be instead, in words.
        reason: why, beginning with the item it is about.
    """

    kind: str
    allowed: str
    reason: str


def layer_policies(config: Config) -> tuple[Policies, ...]:
    """Policies of every layer that a checked configuration asks for.

    Returns:
        For each decoder layer and, behind them, each MTP layer: the tensors that are in it and not
        kept.
    """
    shape = model_shape(config.model)
    found = _preset_layers(config, shape)
    for change in config.memory.tensors:
        for layer in _layers_of(change, config, shape):
            for name in names_of(change):
                found[layer][name] = Policy(change.policy)
    return tuple(
        {
            name: policy
            for name, policy in layer.items()
            if policy is not Policy.KEEP and ACTIVATIONS[name].is_in(shape, index)
        }
        for index, layer in enumerate(found)
    )


def names_of(change: TensorPolicyConfig) -> list[str]:
    """The tensors that a change is about."""
    return [name.strip() for name in change.tensors.split(",")]


def findings(config: Config) -> Iterator[Finding]:
    """Everything wrong with the changes to the preset, in their order."""
    shape = model_shape(config.model)
    current = _preset_layers(config, shape)
    sound = True
    for index, change in enumerate(config.memory.tensors):
        item = f"item {index + 1}"
        problems = [
            *_wrong_names(item, change),
            *_wrong_ranges(item, change, config, shape),
        ] or [
            *_wrong_policies(item, change),
            *_without_effect(item, change, config, shape, current),
        ]
        yield from problems
        sound = sound and not problems
        if not problems:
            for layer in _layers_of(change, config, shape):
                for name in names_of(change):
                    current[layer][name] = Policy(change.policy)
    if sound:
        yield from _not_rebuildable(shape, current)


def _preset_layers(config: Config, shape: ModelShape) -> list[dict[str, Policy]]:
    count = shape.num_layers + shape.num_mtp_layers
    return [dict(PRESETS[config.memory.preset]) for _ in range(count)]


def _layers_of(change: TensorPolicyConfig, config: Config, shape: ModelShape) -> list[int]:
    """Layers that are in the change's range and on one of its stages.

    Without stages the layout is not asked for: an automatic one depends on the policies.
    """
    count = shape.num_layers + shape.num_mtp_layers
    chosen = range(count) if change.layers is None else Numbers.of(change.layers)
    if change.stages is None:
        return [*chosen]
    layout = pipeline_layout(config)
    there = {
        layer
        for rank in Numbers.of(change.stages)
        for stage in layout.chunks(rank)
        for layer in (*stage.layers, *(shape.num_layers + mtp for mtp in stage.mtp_layers))
    }
    return [layer for layer in chosen if layer in there]


def _wrong_names(item: str, change: TensorPolicyConfig) -> Iterator[Finding]:
    for name in names_of(change):
        if name not in ACTIVATIONS:
            known = ", ".join(name for name, one in ACTIVATIONS.items() if len(one.policies) > 1)
            yield Finding(
                kind="name", allowed=known, reason=f"{item}: there is no activation {name}"
            )


def _wrong_ranges(
    item: str, change: TensorPolicyConfig, config: Config, shape: ModelShape
) -> Iterator[Finding]:
    count = shape.num_layers + shape.num_mtp_layers
    if change.stages is not None and config.parallel.pipeline_model_parallel_layout is None:
        yield Finding(
            kind="range",
            allowed="stages where parallel.pipeline_model_parallel_layout is given",
            reason=f"{item}: an automatic layout depends on the policies",
        )
        return
    for what, text, limit in (
        ("layers", change.layers, count),
        ("stages", change.stages, config.parallel.pipeline_model_parallel_size),
    ):
        if text is None:
            continue
        numbers = Numbers.of(text)
        if not numbers or numbers.largest >= limit:
            yield Finding(
                kind="range",
                allowed=f"{what} from 0 to {limit - 1}",
                reason=f"{item}: {what} {text} are not all there",
            )


def _wrong_policies(item: str, change: TensorPolicyConfig) -> Iterator[Finding]:
    policy = Policy(change.policy)
    for name in names_of(change):
        policies = ACTIVATIONS[name].policies
        if policy in policies:
            continue
        reason = f"{item}: {name} is {ACTIVATIONS[name].what}"
        yield Finding(
            kind="policy",
            allowed=f"{' or '.join(one.value for one in policies)} for {name}",
            reason=reason,
        )


def _without_effect(
    item: str,
    change: TensorPolicyConfig,
    config: Config,
    shape: ModelShape,
    current: list[dict[str, Policy]],
) -> Iterator[Finding]:
    policy, layers = Policy(change.policy), _layers_of(change, config, shape)
    if not layers:
        yield Finding(
            kind="effect",
            allowed="leaving it out",
            reason=f"{item}: layers {change.layers} are not on stages {change.stages}",
        )
        return
    for name in names_of(change):
        if name == "expert_output" or policy not in ACTIVATIONS[name].policies:
            continue
        there = [layer for layer in layers if ACTIVATIONS[name].is_in(shape, layer)]
        if not there:
            where = ACTIVATIONS[name].where
            reason = f"{item}: {name} is in {where} alone, and none of the chosen layers is one"
        elif all(policy_of(current[layer], name) is policy for layer in there):
            reason = f"{item}: {name} is {policy.value} without it"
        else:
            continue
        yield Finding(kind="effect", allowed="leaving it out", reason=reason)


def _not_rebuildable(shape: ModelShape, layers: list[dict[str, Policy]]) -> Iterator[Finding]:
    """Combinations that no rebuilding can serve; each told for the first layer that has it."""
    told: set[str] = set()
    for index, layer in enumerate(layers):
        up = {policy_of(layer, name) for name in MLA_UP if ACTIVATIONS[name].is_in(shape, index)}
        moe = not shape.is_dense(min(index, shape.num_layers - 1))
        pair = policy_of(layer, "expert_input"), policy_of(layer, "expert_swiglu_input")
        if len(up) > 1 and "mla" not in told:
            told.add("mla")
            yield Finding(
                kind="rebuild",
                allowed=f"one policy for {', '.join(MLA_UP)}",
                reason=f"layer {index}: one pass rebuilds them all",
            )
        rounded = pair[0] in (Policy.FP8, Policy.FP8_HOST)
        if moe and rounded and pair[1] is Policy.RECOMPUTE and "up" not in told:
            told.add("up")
            yield Finding(
                kind="rebuild",
                allowed=f"expert_swiglu_input not recompute where expert_input is {pair[0].value}",
                reason=f"layer {index}: it would be recomputed from rounded numbers",
            )
