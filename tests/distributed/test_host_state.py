# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Optimizer state in host memory changes no bit, wherever it is saved and loaded again."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from k2_megatron.config.loader import load_config
from k2_megatron.planner.job import Job
from k2_megatron.planner.states import rank_states
from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

CONFIG = str(Path(__file__).with_name("small.yaml"))
ADAMW = ("optimizer.type=adamw",)
# Low enough that some heads are hot in each step.
MUONCLIP = ("optimizer.type=muonclip", "optimizer.qk_clip_threshold=0.02")
BF16 = ("precision.dtype=bf16",)
FRACTION = "optimizer.optimizer_offload_fraction"
ONE = Layout(world_size=1)
CASES = [
    (ONE, (*MUONCLIP, *BF16), 1.0),
    # What the step did last is then no scaling of rows, which may leave them as they are.
    (ONE, ("optimizer.type=muonclip", "optimizer.qk_clip=none", *BF16), 1.0),
    (ONE, (*ADAMW, *BF16), 1.0),
    (Layout(world_size=2), (*MUONCLIP, *BF16, "optimizer.muon_momentum_dtype=bf16"), 0.5),
    (Layout(world_size=2), (*ADAMW, *BF16), 0.5),
    (Layout(world_size=2, tp=2, etp=2), MUONCLIP, 1.0),
    (Layout(world_size=4, ep=2), (*MUONCLIP, *BF16), 1.0),
    (Layout(world_size=4, ep=2), (*ADAMW, *BF16), 1.0),
    (Layout(world_size=4, pp=2, vpp=2), ADAMW, 0.3),
    (
        Layout(world_size=4, pp=2, tp=2, etp=2),
        (*MUONCLIP, *BF16, "model.mtp_num_layers=1", "optimizer.muon_per_head=true"),
        0.5,
    ),
]


@cache
def trained(
    layout: Layout,
    options: tuple[str, ...],
    fraction: float,
    *,
    buffers: tuple[int, int],
    counts_in_groups: bool = False,
) -> list[dict[str, Any]]:
    """What every rank has after four steps; `buffers`: bytes of one, and how many."""
    return run_ranks(
        "tests.distributed.host_state_jobs.train",
        layout.world_size,
        config_path=CONFIG,
        overrides=[*layout.overrides(), *options, f"{FRACTION}={fraction}"],
        buffer_bytes=buffers[0],
        num_buffers=buffers[1],
        counts_in_groups=counts_in_groups,
    )


def assert_same(ranks: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Losses, norms, metrics, weights and state, bit for bit."""
    for one, other in zip(ranks, others, strict=True):
        for name in ("outcomes", "metrics", "num_updates"):
            # Text, because the skipped step's norm is not a number.
            assert str(one[name]) == str(other[name]), name
        for name in ("parameters", "states"):
            for (*what, values), (*again, expected) in zip(one[name], other[name], strict=True):
                assert what == again
                assert torch.equal(values, expected), f"{name}: {what}"


@pytest.mark.parametrize(
    ("layout", "options", "fraction"),
    CASES,
    ids=[f"{layout}-{','.join(o)}-{f}".replace("optimizer.", "") for layout, o, f in CASES],
)
def test_host_state_changes_no_bit(
    layout: Layout, options: tuple[str, ...], fraction: float
) -> None:
    """A skipped step among them; with copies that come late, buffers of 1 KiB and few of them."""
    none = trained(layout, options, 0.0, buffers=(2**26, 24))
    some = trained(layout, options, fraction, buffers=(1024, 5))
    assert [skipped for _, _, skipped in none[0]["outcomes"]] == [False, True, False, False]
    assert_same(some, none)
    for rank in none:
        assert (rank["host_bytes"], rank["held_bytes"], rank["offload_metrics"]) == (0, 0, {})
    assert all(math.isfinite(none[0]["outcomes"][step][1]) for step in (0, 2, 3))
    if MUONCLIP[1] in options:
        assert any(metrics.get("qk_clip/heads_clipped") for metrics in none[0]["metrics"])
    for rank in some:
        moved = rank["offload_metrics"]["offload/state_bytes"]
        assert moved == max(other["moved_bytes"] for other in some)
        # Everything once a step, and what QK-Clip scales once more.
        assert rank["held_bytes"] <= rank["moved_bytes"] <= 1.5 * rank["held_bytes"]
        assert rank["offload_metrics"]["offload/state_wait_seconds"] >= 0
        assert rank["skipped_metrics"]["offload/state_bytes"] == 0


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_steps_counted_by_group_stay_right(fraction: float) -> None:
    """As Transformer Engine's FusedAdam counts them, which each piece would advance."""
    layout, options = Layout(world_size=2, ep=2), (*ADAMW, *BF16)
    none = trained(layout, options, 0.0, buffers=(2**26, 24), counts_in_groups=True)
    some = trained(layout, options, fraction, buffers=(1024, 5), counts_in_groups=True)
    assert none[0]["num_updates"] == 3
    assert_same(some, none)


@pytest.mark.parametrize(
    ("layout", "options", "fraction"),
    [case for case in CASES if case[0].world_size > 1],
    ids=[f"{layout}-{f}-{o[0]}" for layout, o, f in CASES if layout.world_size > 1],
)
def test_room_is_the_planners(layout: Layout, options: tuple[str, ...], fraction: float) -> None:
    """Host memory of the fullest rank of each stage, and what is left of the rest's share."""
    overrides = [*layout.overrides(), *options]
    ranks = trained(layout, options, fraction, buffers=(1024, 5))
    config = load_config(CONFIG, [*overrides, f"{FRACTION}={fraction}"])
    job = Job(config=config, num_gpus=layout.world_size, on_gpu=False)
    for stage in range(layout.pp):
        states = rank_states(job, stage)
        here = [rank for rank in ranks if rank["stage"] == stage]
        assert states.host_bytes == max(rank["host_bytes"] for rank in here)
        assert states.device_bytes == max(_device_bytes(rank, config) for rank in here)


def _device_bytes(rank: dict[str, Any], config: Any) -> int:
    """State that is not on the host; in fp32 runs masters are the weights."""
    copies = config.precision.dtype == "bf16"
    total = sum(v.nbytes for kind, _, v in rank["states"] if kind != "weight" or copies)
    return total - int(rank["held_bytes"])


@pytest.mark.parametrize("options", [MUONCLIP, ADAMW], ids=["muonclip", "adamw"])
def test_checkpoints_load_at_another_fraction(options: tuple[str, ...], tmp_path: Path) -> None:
    """Saved with all state on the host, loaded with none there, and the other way round."""
    layout = Layout(world_size=2, ep=2)

    def run(folder: str, fraction: float, first: int, last: int, save: int | None) -> Any:
        return run_ranks(
            "train_and_save",
            layout.world_size,
            config_path=CONFIG,
            overrides=[
                *layout.overrides(),
                *options,
                *BF16,
                f"{FRACTION}={fraction}",
                f"run.folder={tmp_path / folder}",
            ],
            first=first,
            last=last,
            save_after=save,
        )

    whole = run("whole", 0.0, 1, 4, None)
    for before, after in ((1.0, 0.0), (0.0, 1.0)):
        folder = f"{before} to {after}"
        run(folder, before, 1, 2, 2)
        ranks = run(folder, after, 3, 4, None)
        for one, other in zip(ranks, whole, strict=True):
            assert one["losses"] == other["losses"][2:]
            for mine, expected in zip(one["parameters"], other["parameters"], strict=True):
                assert mine[:3] == expected[:3]
                assert torch.equal(mine[3], expected[3]), mine[:3]
