# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The largest attention logits of a step: right, the same in every layout, of training alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from tests.distributed.equality import CONFIG
from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout

JOBS = "tests.distributed.max_logit_jobs"
MTP = ("model.mtp_num_layers=1",)
LOSS_ALONE = (
    "parallel.pipeline_model_parallel_layout='Ettttt|L'",
    "parallel.pipeline_model_parallel_size=2",
)
EP2 = Layout(world_size=2, ep=2)
PP2_VPP2_EP2 = Layout(world_size=4, pp=2, vpp=2, ep=2)

# fp32 sums in another order over five layers, and logits after a step of AdamW on such gradients.
LOGIT = {"rtol": 2e-5, "atol": 2e-6}


def record(
    world_size: int, *overrides: str, job: str = "record", between: bool = True
) -> list[dict[str, Any]]:
    """The job's result of every rank."""
    return run_ranks(
        f"{JOBS}.{job}",
        world_size,
        config_path=CONFIG,
        overrides=list(overrides),
        evaluate_between=between,
    )


@cache
def one_process(*model: str) -> dict[str, Any]:
    """What all layouts must repeat."""
    (result,) = record(1, *model)
    return result


@pytest.mark.parametrize(
    ("num_layers", "options"),
    [(5, ()), (6, MTP), (5, ("schedule.micro_batch_size=2",))],
    ids=["plain", "mtp", "batch"],
)
def test_maxima_are_those_of_a_plain_computation(num_layers: int, options: tuple[str, ...]) -> None:
    """Every layer, the MTP layer too, over all sequences and all visible pairs of positions."""
    result = one_process(*options)
    maxima, plain = result["maxima"][0], result["plain"]["visible"]
    assert maxima.dtype == torch.float32
    assert maxima.shape == (num_layers, 4)
    assert sorted(plain) == list(range(len(maxima)))
    for layer, values in plain.items():
        # Products of 24 elements in fp32 against fp64.
        torch.testing.assert_close(maxima[layer].double(), values, rtol=1e-5, atol=1e-7)
    hidden = result["plain"]["all_pairs"]
    assert sum(int((hidden[layer] > plain[layer] + 1e-4).sum()) for layer in plain) > 4, (
        "pairs that the mask hides have no larger logit, so the mask is not tested"
    )


@pytest.mark.parametrize("model", [(), MTP], ids=["plain", "mtp"])
@pytest.mark.parametrize(
    "layout",
    [
        Layout(world_size=2),
        Layout(world_size=2, tp=2, etp=2),
        Layout(world_size=2, pp=2),
        Layout(world_size=2, pp=2, vpp=2),
        EP2,
        Layout(world_size=4, tp=2, etp=2, pp=2),
        PP2_VPP2_EP2,
    ],
    ids=str,
)
def test_every_layout_finds_the_maxima_of_one_process(
    layout: Layout, model: tuple[str, ...]
) -> None:
    _assert_repeated(record(layout.world_size, *layout.overrides(), *model), one_process(*model))


def test_a_stage_without_a_layer_learns_the_maxima_too() -> None:
    _assert_repeated(record(2, *LOSS_ALONE), one_process())


def _assert_repeated(ranks: list[dict[str, Any]], one: dict[str, Any]) -> None:
    for result in ranks:
        for step, maxima in enumerate(result["maxima"]):
            torch.testing.assert_close(maxima, one["maxima"][step], **LOGIT)
            assert torch.equal(maxima, ranks[0]["maxima"][step]), "ranks disagree"


def test_steps_are_told_apart() -> None:
    result = one_process()
    assert result["forgotten"].isneginf().all()
    assert not torch.isclose(*result["maxima"], rtol=1e-4).all()


@pytest.mark.parametrize("layout", [Layout(world_size=1), PP2_VPP2_EP2], ids=str)
def test_evaluation_leaves_no_trace(layout: Layout) -> None:
    """Held-out text has larger logits somewhere, and none of them is recorded."""
    mixed = record(layout.world_size, *layout.overrides())
    plain = record(layout.world_size, *layout.overrides(), between=False)
    for one, other in zip(mixed, plain, strict=True):
        assert one["nothing"].isneginf().all()
        assert all(map(torch.equal, one["maxima"], other["maxima"]))
        assert one["losses"] == other["losses"]


def test_recomputation_changes_nothing() -> None:
    """The same maxima once more, from a forward in the backward pass; the first has no gradient."""
    (recomputed,) = record(1, job="record_recomputing")
    assert all(map(torch.equal, recomputed["maxima"], one_process()["maxima"]))


@pytest.mark.parametrize("layout", [EP2, PP2_VPP2_EP2], ids=str)
def test_overlapped_expert_communication_records_the_same(layout: Layout) -> None:
    """Its schedule calls the attention by way of pieces of its own."""
    bf16 = [*layout.overrides(), "precision.dtype=bf16"]
    plain = record(layout.world_size, *bf16)
    overlap = "parallel.overlap_moe_expert_parallel_comm=true"
    overlapped = record(layout.world_size, *bf16, overlap)
    for one, other in zip(plain, overlapped, strict=True):
        assert all(map(torch.equal, one["maxima"], other["maxima"]))
        assert one["maxima"][0].isfinite().all()


def test_recording_changes_no_loss() -> None:
    (plain,) = run_ranks("train", 1, config_path=CONFIG, overrides=[], num_steps=2)
    assert one_process()["losses"] == plain["losses"]


@pytest.mark.parametrize("layout", [Layout(world_size=2), Layout(world_size=2, tp=2, etp=2)])
def test_a_nan_comes_out_as_infinity_on_every_rank(layout: Layout) -> None:
    """A reduction may lose a NaN: whichever of two ranks is compared first wins."""
    found = run_ranks(
        f"{JOBS}.record_a_nan",
        layout.world_size,
        config_path=CONFIG,
        overrides=layout.overrides(),
    )
    head = 2 if layout.tp == 2 else 0
    for maxima in found:
        assert maxima.isinf().nonzero().tolist() == [[0, head]]
        assert maxima[0, head] == torch.inf
