# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Compare a layout's run with the single process's: the heart of the contract of equivalence."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.canonical import assemble
from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

CONFIG = str(Path(__file__).with_name("small.yaml"))
NUM_STEPS = 3

# fp32 sums in another order: 2^-24 times the square root of the some thousand terms of a gradient,
# with an order of magnitude to spare. Wrong gradients differ by 1e-2 and more.
GRADIENT = {"rtol": 2e-5, "atol": 2e-6}
# Three AdamW steps of at most 2e-3 each, on gradients of that accuracy.
PARAMETER = {"rtol": 2e-5, "atol": 2e-6}


@cache
def single_process(*overrides: str) -> dict[str, Any]:
    """The run that all layouts must repeat, its matrices put together."""
    (result,) = run_ranks(
        "train", 1, config_path=CONFIG, overrides=list(overrides), num_steps=NUM_STEPS
    )
    for name in ("initial", "gradients", "parameters"):
        result[name] = assemble([result[name]], result["shapes"])
    return result


def assert_equals_one_process(
    layout: Layout, model: tuple[str, ...] = (), engine: tuple[str, ...] = ()
) -> None:
    """Loss, norm, router bias, initial weights, every gradient, and parameters after steps.

    Args:
        layout: of the run under test.
        model: overrides of both runs.
        engine: overrides of the run under test alone, which must not change any number.
    """
    one = single_process(*model)
    ranks = run_ranks(
        "train",
        layout.world_size,
        config_path=CONFIG,
        overrides=[*layout.overrides(), *model, *engine],
        num_steps=NUM_STEPS,
    )
    routers = [key for key in one["shapes"] if key.endswith(".router")]
    assert len(one["biases"]) == len(one["loads"]) == len(routers)
    assert {layer for result in ranks for layer in result["biases"]} == one["biases"].keys()
    for result in ranks:
        assert result["losses"] == pytest.approx(one["losses"], rel=2e-6)
        assert result["grad_norms"] == pytest.approx(one["grad_norms"], rel=1e-5)
        for name in ("biases", "loads"):
            for layer, values in result[name].items():
                assert values == one[name][layer], f"{name} of layer {layer}"
    initial = assemble([result["initial"] for result in ranks], one["shapes"])
    for key, matrix in one["initial"].items():
        assert torch.equal(initial[key], matrix), f"{key} begins with other values"
    for name, tolerance in (("gradients", GRADIENT), ("parameters", PARAMETER)):
        found = assemble([result[name] for result in ranks], one["shapes"])
        for key, matrix in one[name].items():
            torch.testing.assert_close(found[key], matrix, **tolerance, msg=_named(name, key))


def _named(name: str, key: str) -> Callable[[str], str]:
    """Put the matrix in front of what assert_close says."""
    return lambda text: f"{name} of {key}: {text}"
