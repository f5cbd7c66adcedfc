# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which layers get which policy, and the table that says so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from k2_megatron.config.config import Config
from k2_megatron.config.memory import MemoryConfig, TensorPolicyConfig
from k2_megatron.config.numbers import Numbers
from k2_megatron.config.presets import model_from_preset
from k2_megatron.memory.policy import PRESETS, Policy, policy_of
from k2_megatron.memory.resolve import layer_policies
from k2_megatron.memory.tensors import ACTIVATIONS
from k2_megatron.planner.activations import layer_tensors
from k2_megatron.planner.job import job_of
from k2_megatron.planner.plan import rank_plan
from k2_megatron.planner.policy_table import policy_rows, ranges
from tests.planner.planner_helpers import config_of

LAYOUT = "Ett|tt|t|tmL"


def with_memory(*changes: TensorPolicyConfig, preset: str = "k2") -> Config:
    model = model_from_preset("kimi-k2", num_layers=6, mtp_num_layers=1)
    config = config_of(
        model,
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=2,
        pipeline_model_parallel_layout=LAYOUT,
    )
    return replace(config, memory=MemoryConfig(preset=preset, tensors=changes))  # type: ignore[arg-type]


def test_changes_apply_in_order_to_layers_and_stages() -> None:
    """Rank 0 has layers 0, 1, 4, rank 1 layers 2, 3, 5 and the MTP layer, number 6."""
    found = layer_policies(
        with_memory(
            TensorPolicyConfig(tensors="expert_input", policy="keep", stages="0"),
            TensorPolicyConfig(tensors="expert_input", policy="recompute", layers="3-4, 6"),
            TensorPolicyConfig(
                tensors="shared_swiglu_input,expert_swiglu_input", layers="1-3", stages="1"
            ),
        )
    )
    keep, fp8, again = Policy.KEEP, Policy.FP8, Policy.RECOMPUTE
    assert [policy_of(layer, "expert_input") for layer in found] == [
        *(keep, keep, fp8, again, again, fp8, again)
    ]
    for name in ("shared_swiglu_input", "expert_swiglu_input"):
        assert [policy_of(layer, name) for layer in found] == [keep, fp8, keep, keep, fp8, fp8, fp8]
    assert [policy_of(layer, "dense_swiglu_input") for layer in found] == [fp8, *[keep] * 6]


def test_attention_under_context_parallelism_keeps_keys_and_values() -> None:
    """Transformer Engine's, which is the only one that has it, saves copies of its own."""
    config = with_memory()
    parallel = replace(config.parallel, context_parallel_size=2)
    rows = policy_rows(job_of(replace(config, parallel=parallel)))
    found = {name: what for name, _, what, _, _ in rows if name in ("query", "key", "value")}
    kept = "keep: Transformer Engine copies it"
    assert found == {"query": "recompute", "key": kept, "value": kept}


def test_table_has_every_layer_of_every_tensor_once() -> None:
    changed = TensorPolicyConfig(tensors="expert_input", policy="keep", layers="2")
    rows = policy_rows(job_of(with_memory(changed)))
    assert [row for row in rows if row[0] == "expert_input"] == [
        ("expert_input", "1, 3-6", "fp8", "114688", "59136"),
        ("expert_input", "2", "keep", "114688", "114688"),
    ]
    assert ("expert_output", "1-6", "satisfied: never stored", "0", "0") in rows
    assert ("mlp_norm_output", "0", "keep: one with the next product", "14336", "14336") in rows
    for name in ACTIVATIONS:
        layers = ",".join(row[1] for row in rows if row[0] == name)
        numbers = list(Numbers.of(layers))
        assert len(numbers) == len(set(numbers))
        assert len(numbers) == {
            "dense": 1,
            "expert": 6,
            "shared": 6,
            "router": 6,
        }.get(name.split("_")[0], 7)


def test_planned_bytes_follow_the_changes_of_each_layer() -> None:
    """One layer of rank 1 keeps its tokens in bf16; the other ranks' plans stay as they were."""
    changed = TensorPolicyConfig(tensors="expert_input", policy="keep", layers="2")
    plans = [
        [rank_plan(job_of(with_memory(*changes)), rank) for rank in range(2)]
        for changes in ((), (changed,))
    ]
    (first, second), (same, more) = plans
    assert first.activations == same.activations
    in_flight = more.in_flight[0]
    growth = more.activations["expert_input"] - second.activations["expert_input"]
    assert growth == in_flight * 4096 * (114688 - 59136)


def test_names_are_those_of_the_planner() -> None:
    job = replace(job_of(config_of()), gate_after_down=True)
    names = {tensor.name for dense in (True, False) for tensor in layer_tensors(job, dense=dense)}
    assert names == set(ACTIVATIONS)
    for preset in ("none", "k2", "k2-lean"):
        for name, policy in PRESETS[preset].items():
            assert policy in ACTIVATIONS[name].policies, (preset, name)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 7], "0-2, 7"), ([1, 3], "1, 3")]
)
def test_ranges(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text
    assert not text or list(Numbers.of(text)) == numbers
