# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""N steps are N/2 steps, a save, a new process, a resume and N/2 more: bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

CONFIG = str(Path(__file__).with_name("small.yaml"))

OVERLAP = ("parallel.overlap_grad_reduce=true", "parallel.overlap_param_gather=true")
ADAMW = ("optimizer.type=adamw",)
MUONCLIP = ("optimizer.type=muonclip", "optimizer.qk_clip_threshold=0.02")
BF16 = ("precision.dtype=bf16",)
# Going on in the same layout; test_any_layout.py has the pairs of different ones.
CASES = [
    (Layout(world_size=1), ADAMW),
    (Layout(world_size=2), (*ADAMW, *OVERLAP)),
    (Layout(world_size=2, tp=2, etp=2), MUONCLIP),
    (Layout(world_size=2, pp=2, vpp=2), (*ADAMW, *BF16)),
    (Layout(world_size=4, ep=2), (*MUONCLIP, *BF16)),
    (Layout(world_size=4, pp=2, ep=2), (*BF16, *OVERLAP)),
    (Layout(world_size=4, pp=2, vpp=2), OVERLAP),
    (Layout(world_size=8, tp=2, pp=2, ep=2, etp=2), MUONCLIP),
]


def job(layout: Layout, options: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """What every run of a case is given."""
    return {
        "world_size": layout.world_size,
        "config_path": CONFIG,
        "overrides": [
            *layout.overrides(),
            *options,
            f"run.folder={folder}",
            # The default, with which a wrong step count of AdamW shows most.
            "optimizer.adam_eps=1.0e-8",
        ],
    }


def assert_same_end(ranks: list[Any], others: list[Any]) -> None:
    """Last losses, router biases and all parameters, bit for bit."""
    for one, other in zip(ranks, others, strict=True):
        assert one["losses"][-3:] == other["losses"][-3:]
        assert one["biases"] == other["biases"]
        for (key, rows, cols, values), again in zip(
            one["parameters"], other["parameters"], strict=True
        ):
            assert (key, rows, cols) == again[:3]
            assert torch.equal(values, again[3]), f"{key} {rows} {cols}"


@pytest.mark.parametrize(("layout", "options"), CASES, ids=str)
def test_resume_equals_not_stopping(
    layout: Layout, options: tuple[str, ...], tmp_path: Path
) -> None:
    given = job(layout, options, tmp_path)
    whole = run_ranks("train_and_save", first=1, last=6, save_after=3, **given)
    resumed = run_ranks("train_and_save", first=4, last=6, save_after=None, **given)
    assert_same_end(whole, resumed)


@pytest.mark.parametrize(
    ("layout", "options"),
    [(Layout(world_size=2), OVERLAP), (Layout(world_size=2, pp=2, vpp=2), ())],
    ids=str,
)
def test_saving_in_the_middle_changes_nothing(
    layout: Layout, options: tuple[str, ...], tmp_path: Path
) -> None:
    given = job(layout, options, tmp_path)
    saving = run_ranks("train_and_save", first=1, last=6, save_after=3, **given)
    plain = run_ranks("train_and_save", first=1, last=6, save_after=None, **given)
    assert_same_end(saving, plain)


def test_what_only_steers_training_may_change_on_resume(tmp_path: Path) -> None:
    """Annealing freezes the router bias in a run that goes on."""
    given = {"config_path": CONFIG, "save_after": 1}
    place = [f"run.folder={tmp_path}"]
    run_ranks("train_and_save", 1, first=1, last=1, overrides=place, **given)
    frozen = [*place, "model.moe_router_bias_update_rate=0.0"]
    (before,) = run_ranks("train_and_save", 1, first=2, last=1, overrides=frozen, **given)
    (after,) = run_ranks("train_and_save", 1, first=2, last=2, overrides=frozen, **given)
    assert any(any(bias) for bias in before["biases"].values())
    assert before["biases"] == after["biases"]
