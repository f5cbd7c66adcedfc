# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a step does beside the update: skipping, router bias, learning rate, evaluation between."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

CONFIG = str(Path(__file__).with_name("small.yaml"))


@pytest.mark.parametrize("optimizer", ["adamw", "muonclip"])
@pytest.mark.parametrize("layout", [Layout(world_size=1), Layout(world_size=2, ep=2)], ids=str)
def test_a_non_finite_gradient_skips_the_step_and_the_router_bias(
    layout: Layout, optimizer: str
) -> None:
    """Weights, moments and selection biases stay as they were, and the next step goes on."""
    options = [*layout.overrides(), f"optimizer.type={optimizer}"]
    for result in run_ranks(
        "skipped_step", layout.world_size, config_path=CONFIG, overrides=options
    ):
        assert result["skipped"] == [False, True, False]
        assert result["unchanged"]
        assert result["bias_unchanged"]
        assert result["moved_after"]


def test_router_bias_follows_the_centred_rule() -> None:
    (result,) = run_ranks("train", 1, config_path=CONFIG, overrides=[], num_steps=1)
    assert list(result["loads"]) == [1, 2, 3, 4]
    for layer, loads in result["loads"].items():
        mean = sum(loads) / len(loads)
        signs = [(mean > load) - (mean < load) for load in loads]
        centre = sum(signs) / len(signs)
        expected = [1e-3 * (sign - centre) for sign in signs]
        assert result["biases"][layer] == pytest.approx(expected, abs=1e-9)


OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
EXPERT_OVERLAP = ("parallel.overlap_moe_expert_parallel_comm=true", "precision.dtype=bf16")


@pytest.mark.parametrize(
    ("layout", "engine"),
    [
        (Layout(world_size=1), ()),
        (Layout(world_size=2, pp=2, vpp=2), ()),
        (Layout(world_size=2), OVERLAP),
        (Layout(world_size=4, pp=2, vpp=2), OVERLAP),
        (Layout(world_size=2, ep=2), EXPERT_OVERLAP),
        (Layout(world_size=4, pp=2, vpp=2, ep=2), EXPERT_OVERLAP),
    ],
    ids=str,
)
def test_evaluation_between_steps_changes_nothing(layout: Layout, engine: tuple[str, ...]) -> None:
    """Neither the training losses nor the token counts of the router see held-out text."""
    options = {"config_path": CONFIG, "overrides": [*layout.overrides(), *engine]}
    plain = run_ranks("train_with_evaluation", layout.world_size, evaluations=0, **options)
    mixed = run_ranks("train_with_evaluation", layout.world_size, evaluations=2, **options)
    for one, other in zip(plain, mixed, strict=True):
        assert one["losses"] == other["losses"]
        assert one["loads"] == other["loads"]
        assert one["biases"] == other["biases"]
    assert len({tuple(result["valid_losses"]) for result in mixed}) == 1, "ranks disagree"


def test_norm_gains_decay_like_matrices() -> None:
    """megatron-core leaves vectors out unless it is told not to."""
    (result,) = run_ranks("train", 1, config_path=CONFIG, overrides=[], num_steps=1)
    assert result["decays"] == [0.1]


def test_learning_rate_warms_up_from_the_first_step_and_ends_at_the_minimum() -> None:
    """Step 1 already moves the weights: the wheel's schedule would give it a rate of 0."""
    overrides = [
        "schedule.lr_decay_style=wsd",
        "schedule.lr_wsd_decay_steps=4",
        "schedule.train_steps=10",
    ]
    (result,) = run_ranks("train", 1, config_path=CONFIG, overrides=overrides, num_steps=10)
    rates = result["rates"]
    assert rates[:6] == pytest.approx([1e-3, *[2e-3] * 5])
    assert rates[-1] == pytest.approx(2e-4)
    assert all(a > b for a, b in pairwise(rates[5:]))
