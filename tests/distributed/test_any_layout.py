# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint of any layout loads in any other: every value, and training goes on the same."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.canonical import assemble
from tests.distributed.equality import CONFIG, PARAMETER
from tests.distributed.harness import run_ranks
from tests.distributed.layouts import Layout, all_layouts

SAVED, LAST = 2, 4
ADAMW = ("optimizer.type=adamw",)
MUONCLIP = ("optimizer.type=muonclip", "optimizer.qk_clip_threshold=0.02")
BF16 = ("precision.dtype=bf16",)
MTP = ("model.mtp_num_layers=1",)
Case = tuple[Layout, Layout, tuple[str, ...]]

# What must not be left to chance; every axis changes here.
CHOSEN: list[Case] = [
    (Layout(world_size=1), Layout(world_size=8, tp=2, pp=2, ep=2), MUONCLIP),
    (Layout(world_size=8, pp=2, vpp=2, ep=2, etp=2), Layout(world_size=1), ADAMW),
    (Layout(world_size=2, tp=2, etp=2), Layout(world_size=2, ep=2), MUONCLIP),
    (Layout(world_size=2, ep=2), Layout(world_size=2, tp=2, etp=2), (*ADAMW, *BF16)),
    (Layout(world_size=2, pp=2, vpp=2), Layout(world_size=2, pp=2), (*MUONCLIP, *BF16)),
    (Layout(world_size=4, tp=2, pp=2, etp=2), Layout(world_size=2), (*MUONCLIP, *MTP)),
]


def generated(number: int) -> list[Case]:
    """Pairs drawn from all layouts of up to four processes."""
    chance = random.Random(20260)
    layouts = [
        layout for size in (1, 2, 4) for layout in all_layouts(size, num_layers=5, num_experts=8)
    ]
    optimizers = (ADAMW, MUONCLIP, (*ADAMW, *BF16), (*MUONCLIP, *BF16))
    pairs: list[Case] = []
    while len(pairs) < number:
        one, other = chance.sample(layouts, 2)
        pairs.append((one, other, optimizers[len(pairs) % len(optimizers)]))
    return pairs


CASES = CHOSEN + generated(int(os.environ.get("K2_MEGATRON_SOAK_PAIRS", "4")))


def overrides(layout: Layout, options: tuple[str, ...], folder: Path) -> list[str]:
    return [*layout.overrides(), *options, f"run.folder={folder}", "optimizer.adam_eps=1.0e-8"]


def everything(ranks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """All that the ranks held, as whole matrices; copies are compared on the way."""
    held = [result["held"] for result in ranks]
    state = assemble([one["state"] for one in held], held[0]["shapes"])
    found = assemble([one["parameters"] for one in held], held[0]["model_shapes"])
    return state | {f"parameter/{key}": values for key, values in found.items()}


@pytest.mark.parametrize(
    ("one", "other", "options"),
    CASES,
    ids=lambda value: str(value) if isinstance(value, Layout) else ",".join(value),
)
def test_what_one_layout_saves_another_goes_on_with(
    one: Layout, other: Layout, options: tuple[str, ...], tmp_path: Path
) -> None:
    saved = run_ranks(
        "tests.distributed.checkpoint_jobs.save_and_go_on",
        one.world_size,
        config_path=CONFIG,
        overrides=overrides(one, options, tmp_path),
        save_after=SAVED,
        last=LAST,
    )
    resumed = run_ranks(
        "tests.distributed.checkpoint_jobs.resume_and_go_on",
        other.world_size,
        config_path=CONFIG,
        overrides=overrides(other, options, tmp_path),
        last=LAST,
    )
    before, after = everything(saved), everything(resumed)
    assert before.keys() == after.keys()
    moments = {name.split("/")[0] for name in before} - {"weight", "parameter"}
    assert moments == {"exp_avg", "exp_avg_sq"} | (
        {"momentum"} if MUONCLIP[0] in options else set()
    )
    for name, values in before.items():
        assert torch.equal(values, after[name]), name
        assert "router_bias" in name or values.any(), f"{name} has nothing to compare"
    assert {result["step"] for result in resumed} == {SAVED}
    for result in (*saved, *resumed):
        assert result["held"]["updates"] in (SAVED, None)
    for result in resumed:
        (note,) = result["notes"]
        assert note.startswith("another layout (")
        assert "random states belong to ranks and begin anew" in note
    if BF16[0] not in options:
        assert_same_end(saved, resumed)


def assert_same_end(saved: list[dict[str, Any]], resumed: list[dict[str, Any]]) -> None:
    """Losses and parameters of the steps after the save, within fp32's tolerance.

    Not bf16: tensor parallelism rounds other partial sums to 8 bits.
    """
    shapes = saved[0]["held"]["model_shapes"]
    for result in resumed:
        assert result["losses"] == pytest.approx(saved[0]["losses"], rel=2e-6)
    one = assemble([result["parameters"] for result in saved], shapes)
    for key, values in assemble([result["parameters"] for result in resumed], shapes).items():
        torch.testing.assert_close(
            values, one[key], **PARAMETER, msg=lambda text, key=key: f"{key}: {text}"
        )
    biases = {layer: bias for result in saved for layer, bias in result["biases"].items()}
    for result in resumed:
        for layer, bias in result["biases"].items():
            assert bias == biases[layer]


STAGES = "parallel.pipeline_model_parallel_layout=Et|t|t|ttL"


@pytest.mark.parametrize(("one", "other"), [("none", "k2-lean"), ("k2-full", "k2")])
def test_another_memory_preset_goes_on_bit_for_bit(one: str, other: str, tmp_path: Path) -> None:
    """In the same layout, between presets that compute the same bits."""
    layout = Layout(world_size=2, pp=2, vpp=2)
    given = overrides(layout, (*MUONCLIP, *BF16, STAGES), tmp_path)
    saved, resumed = (
        run_ranks(
            f"tests.distributed.checkpoint_jobs.{job}",
            2,
            config_path=CONFIG,
            overrides=[*given, f"memory.preset={preset}"],
            last=LAST,
            **more,
        )
        for job, preset, more in (
            ("save_and_go_on", one, {"save_after": SAVED}),
            ("resume_and_go_on", other, {}),
        )
    )
    for before, after in zip(saved, resumed, strict=True):
        assert (after["step"], list(after["notes"])) == (SAVED, [])
        assert before["losses"] == after["losses"] and before["biases"] == after["biases"]
    ends = [everything_at_the_end(ranks) for ranks in (saved, resumed)]
    held = [everything(ranks) for ranks in (saved, resumed)]
    for before, after in (ends, held):
        assert before.keys() == after.keys()
        assert all(torch.equal(values, after[name]) for name, values in before.items())


def everything_at_the_end(ranks: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The parameters after the last step, as whole matrices."""
    return assemble([one["parameters"] for one in ranks], ranks[0]["held"]["model_shapes"])


def test_each_rank_gets_its_random_states_back(tmp_path: Path) -> None:
    """The model draws nothing while it trains, so no equality of losses would show it."""
    given = overrides(Layout(world_size=2, tp=2, etp=2), ADAMW, tmp_path)
    job = "tests.distributed.checkpoint_jobs.draw_after"
    saved = run_ranks(job, 2, config_path=CONFIG, overrides=given, resumes=False)
    resumed = run_ranks(job, 2, config_path=CONFIG, overrides=given, resumes=True)
    assert saved == resumed
    for name in ("torch", "tracker", "python", "numpy"):
        assert len({str(result[name]) for result in saved}) == 2, f"{name}: the ranks draw the same"


def test_training_starts_from_weights_alone(tmp_path: Path) -> None:
    """In another layout, optimizer and dtype than those of the run they come from."""
    (saved,) = run_ranks(
        "tests.distributed.checkpoint_jobs.save_and_go_on",
        1,
        config_path=CONFIG,
        overrides=overrides(Layout(world_size=1), ADAMW, tmp_path / "one"),
        save_after=SAVED,
        last=SAVED,
    )
    started = run_ranks(
        "tests.distributed.checkpoint_jobs.start_from_weights",
        2,
        config_path=CONFIG,
        overrides=overrides(
            Layout(world_size=2, tp=2, ep=2), (*MUONCLIP, *BF16), tmp_path / "other"
        ),
        source=str(tmp_path / "one" / "small" / "checkpoints" / "step_00000002"),
    )
    before, after = everything([saved]), everything(started)
    for name, values in after.items():
        kind, _, key = name.partition("/")
        if kind == "weight":
            assert torch.equal(values, before[name]), name
        elif kind == "parameter":
            assert torch.equal(values, before[f"weight/{key}"].bfloat16().float()), name
        else:
            assert not values.any(), name
    for result in started:
        assert result["step"] == 0 and result["held"]["updates"] == 0
        assert "optimizer and data begin anew" in result["notes"][0]
        assert all(0 < loss < 10 for loss in result["losses"])


def test_unequal_copies_are_refused(tmp_path: Path) -> None:
    """Tensor ranks that have drifted apart: a checkpoint of one of them would hide it."""
    layout = Layout(world_size=2, tp=2, etp=2)
    found = run_ranks(
        "tests.distributed.checkpoint_jobs.save_with_unequal_copies",
        2,
        config_path=CONFIG,
        overrides=overrides(layout, ADAMW, tmp_path),
    )
    for text in found:
        assert "ranks that should have the same values have different ones of " in text
        assert "weight/layers.0.mlp_norm rows 0:64, columns 0:1" in text
        assert "tensor rank 1: " in text and "layers.1" not in text
