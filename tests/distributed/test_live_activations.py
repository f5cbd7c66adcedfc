# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a layer holds between forward and backward is what the planner's table says, byte by byte.

The table has what Transformer Engine's layers save; of it the tensors with a name of their own are
saved by megatron-core's layers just the same. Attention is not fused on a CPU, and the router
takes other operations: their storages are told by their shapes and left out on both sides.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.harness import run_ranks

CONFIG = str(Path(__file__).with_name("small.yaml"))
LENGTH = 40
NOT_COMPARED = ("router", "attention_statistics", "attention_probabilities")


def _live(layers: int, *overrides: str, **kwargs: Any) -> dict[str, Any]:
    (result,) = run_ranks(
        "tests.distributed.memory_jobs.live_storages",
        1,
        config_path=CONFIG,
        overrides=[f"model.num_layers={layers}", f"schedule.seq_length={LENGTH}", *overrides],
        **kwargs,
    )
    return result


def _of_one_layer(*overrides: str) -> tuple[Counter[tuple[str, int]], dict[str, float]]:
    """What an MoE layer more leaves alive, and the table."""
    small, large = (_live(layers, *overrides) for layers in (3, 4))
    extra = Counter(large["alive"])
    extra.subtract(small["alive"])
    assert min(extra.values()) >= 0
    table = {name: size for name, size in large["table"].items() if name not in NOT_COMPARED}
    return extra, table


def _compared(what: str) -> bool:
    """Activations and scales of FP8 copies; no matrix of attention, nothing of the router."""
    shape = re.search(r"\((.*?)\)$", what)
    square = shape is not None and shape[1].endswith(f"{LENGTH}, {LENGTH}")
    stored = "bfloat16" in what or "float8" in what or "reciprocal" in what
    return stored and not square


@pytest.mark.parametrize("preset", ["k2", "k2-lean"])
def test_layer_holds_what_the_table_says(preset: str) -> None:
    extra, table = _of_one_layer("precision.dtype=bf16", f"memory.preset={preset}")
    held = sum(size * count for (what, size), count in extra.items() if _compared(what))
    assert held == sum(table.values())


def test_layer_without_a_policy_holds_every_tensor_of_the_table() -> None:
    """And more, on a CPU: its norms are several operations. In fp32, where none makes a copy."""
    extra, table = _of_one_layer()
    sizes = Counter({size: 0 for _, size in extra})
    for (_, size), count in extra.items():
        sizes[size] += count
    assert not Counter(map(int, table.values())) - sizes


def test_nothing_is_left_after_backward_or_evaluation() -> None:
    """A hook lives as long as its graph; what it held must not.

    megatron-core's routers and dispatchers keep some small tensors of their last forward.
    """
    none = _live(3)
    routers = none["after"]
    assert sum(size for _, size in routers) < 0.03 * sum(size for _, size in none["alive"])
    for preset in ("k2", "k2-lean"):
        assert _live(3, f"memory.preset={preset}")["after"] == routers
        evaluated = Counter(_live(3, f"memory.preset={preset}", grad=False)["alive"])
        assert sum((evaluated - Counter(routers)).values()) == 1, "the tokens' losses"


def test_overlapped_layers_do_not_hold_the_shared_experts_output() -> None:
    """megatron-core would, from the sum to backward, where only its gradient is asked for."""
    overlap = "parallel.overlap_moe_expert_parallel_comm=true"
    found = run_ranks(
        "tests.distributed.memory_jobs.shared_outputs_behind_their_sum",
        2,
        config_path=CONFIG,
        overrides=["parallel.expert_model_parallel_size=2", "precision.dtype=bf16", overlap],
    )
    for sizes in found:
        assert sizes and not any(sizes)
