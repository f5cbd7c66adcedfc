# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""One configuration on clusters of different sizes, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from k2_megatron.planner.hardware import ESTIMATE_ERROR
from k2_megatron.planner.plan import Plan, as_json
from k2_megatron.planner.text import fullest, gib, table


def compare_text(plans: Sequence[Plan]) -> str:
    """A column for each number of GPUs; memory of the fullest rank."""
    rows = [
        ["GPUs", *(str(plan.job.num_gpus) for plan in plans)],
        ["data parallel", *(str(plan.job.degrees.data) for plan in plans)],
        ["expert data parallel", *(str(plan.job.degrees.expert_data) for plan in plans)],
        ["micro-batches", *(str(plan.job.sizes.num_microbatches) for plan in plans)],
        ["weights and gradients, GiB", *(gib(_weights(plan)) for plan in plans)],
        ["optimizer state, GiB", *(gib(fullest(plan).optimizer_bytes) for plan in plans)],
        ["activations, GiB", *(gib(fullest(plan).held_bytes) for plan in plans)],
        ["peak, GiB", *(gib(plan.peak_bytes) for plan in plans)],
        ["free, GiB", *(gib(plan.headroom_bytes) for plan in plans)],
        ["fits", *("yes" if plan.fits else "no" for plan in plans)],
        ["full at imbalance", *(_full(plan) for plan in plans)],
        ["pinned host, GiB a node", *(gib(plan.host_bytes_per_node) for plan in plans)],
        ["step, s", *(f"{plan.estimate.step_seconds:.3g}" for plan in plans)],
        ["  bubble", *(f"{100 * plan.estimate.bubble:.1f} %" for plan in plans)],
        ["  optimizer, s", *(f"{plan.estimate.optimizer_seconds:.2g}" for plan in plans)],
        ["  Newton-Schulz balance", *(_balance(plan) for plan in plans)],
        ["tokens/s/GPU", *(f"{plan.estimate.tokens_per_gpu:.0f}" for plan in plans)],
        ["model TFLOP/s/GPU", *(f"{plan.estimate.flops_per_gpu / 1e12:.0f}" for plan in plans)],
    ]
    first = plans[0].job
    return (
        f"{first.config.run.name}: {first.config.model.preset} on {first.gpu.name}\n\n"
        f"{table(rows)}\n\nTimes are estimates, good to some {100 * ESTIMATE_ERROR:.0f} %."
    )


def compare_json(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Every plan in full."""
    return [as_json(plan) for plan in plans]


def _weights(plan: Plan) -> int:
    states = fullest(plan).states
    return states.parameter_bytes + states.gradient_bytes


def _full(plan: Plan) -> str:
    return "-" if plan.full_at is None else f"{plan.full_at:.2f}"


def _balance(plan: Plan) -> str:
    return f"{max(one.balance for one in plan.muon):.2f}" if plan.muon else "-"
