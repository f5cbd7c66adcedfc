# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What the engine does and this project leaves out changes no number."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.harness import run_ranks

SMALL = str(Path(__file__).with_name("small.yaml"))
JOBS = "tests.distributed.short_cut_jobs"
EP2, TP2 = (f"parallel.{name}_model_parallel_size=2" for name in ("expert", "tensor"))


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [(1, []), (2, [TP2]), (2, []), (1, ["model.mtp_num_layers=1"])],
    ids=["one process", "TP2", "DP2", "MTP"],
)
def test_rows_added_to_the_sum_are_the_embeddings_gradient(
    world_size: int, overrides: list[str]
) -> None:
    for rank in run_ranks(
        f"{JOBS}.embedding_gradients", world_size, config_path=SMALL, overrides=overrides
    ):
        engine, ours = rank["engine"], rank["ours"]
        assert engine["losses"][0] == ours["losses"][0]
        for theirs, mine in zip(engine["gradients"], ours["gradients"], strict=True):
            assert theirs[:3] == mine[:3]
            # The same products in another order of sums.
            torch.testing.assert_close(mine[3], theirs[3], rtol=1e-5, atol=1e-8)
        assert ours["losses"][1] == pytest.approx(engine["losses"][1], rel=1e-6)


def test_repeated_rows_are_summed_in_fp32() -> None:
    """Each row some 70 times a call: PyTorch's own gradient is rounded to bf16."""
    (run,) = run_ranks(f"{JOBS}.repeated_tokens", 1)
    errors = {
        name: float((run[name] - run["exact"]).norm() / run["exact"].norm())
        for name in ("found", "plain")
    }
    assert errors["found"] < 1e-6 < 1e-4 < errors["plain"]
    assert run["repeats"], "additions in whatever order"


@pytest.mark.parametrize(
    ("overrides", "world_size", "left"), [([], 1, False), ([EP2], 2, True)], ids=["EP1", "EP2"]
)
def test_tokens_are_sorted_only_behind_an_exchange(
    overrides: list[str], world_size: int, left: bool
) -> None:
    for rank in run_ranks(f"{JOBS}.sorts", world_size, config_path=SMALL, overrides=overrides):
        engine, ours = rank["engine"], rank["ours"]
        assert engine["sorts"] > 0
        assert ours["sorts"] == (engine["sorts"] if left else 0)
        assert ours["losses"] == engine["losses"]
        for theirs, mine in zip(engine["parameters"], ours["parameters"], strict=True):
            assert torch.equal(mine[3], theirs[3])


@pytest.mark.parametrize(
    ("overrides", "world_size"),
    [
        ([], 1),
        (["memory.preset=k2"], 1),
        (["memory.preset=k2-lean"], 1),
        ([EP2, "memory.preset=k2-lean"], 2),
        ([TP2], 2),
    ],
    ids=["one process", "k2", "k2-lean", "EP2 k2-lean", "TP2"],
)
def test_shared_expert_between_counts_and_wait_changes_no_bit(
    overrides: list[str], world_size: int
) -> None:
    """In bf16, where sums of three gradients in another order have other bits."""
    overrides = ["precision.dtype=bf16", *overrides]
    for rank in run_ranks(
        f"{JOBS}.shared_experts", world_size, config_path=SMALL, overrides=overrides
    ):
        engine, ours = rank["engine"], rank["ours"]
        assert engine["order"] == ["shared", "counts", "wait"]
        assert ours["order"] == ["counts", "shared", "wait"]
        assert ours["losses"] == engine["losses"]
        for what in ("gradients", "parameters"):
            for theirs, mine in zip(engine[what], ours[what], strict=True):
                assert torch.equal(mine[3], theirs[3])
