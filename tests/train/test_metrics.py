# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers derived from a step, the table of tags and its page."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
from metrics_records import bare_record, full_record

from k2_megatron.train import moe_metrics, tags
from k2_megatron.train.metrics import scalars

PAGE = Path(__file__).parents[2] / "docs" / "tensorboard.md"


def test_speed_counts_the_whole_job_and_flops_one_device() -> None:
    record = full_record(tokens=3000, step_seconds=1.5, model_flops=6e13, world_size=8)
    assert record.tokens_per_second == 2000
    assert record.tflops_per_device == 5.0
    assert scalars(record)[tags.TOKENS_PER_SECOND_PER_DEVICE] == 250


def test_imbalance_is_the_busiest_expert_over_the_mean() -> None:
    assert moe_metrics.imbalance([10, 10, 20, 0]) == 2.0
    assert moe_metrics.imbalance([7, 7, 7]) == 1.0
    assert math.isnan(moe_metrics.imbalance([0, 0]))


def test_bias_range_is_largest_minus_smallest() -> None:
    assert moe_metrics.bias_range([0.5, -0.25, 0.0]) == 0.75
    assert moe_metrics.bias_range([0.25]) == 0.0


def test_a_layer_without_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="without experts has no imbalance"):
        moe_metrics.imbalance([])
    with pytest.raises(ValueError, match="without experts have no range"):
        moe_metrics.bias_range([])


def test_layers_come_in_order() -> None:
    assert list(moe_metrics.imbalance_by_layer({10: [1, 3], 2: [1, 1]}).items()) == [
        (2, 1.0),
        (10, 1.5),
    ]
    assert moe_metrics.bias_range_by_layer({3: [1.0, 2.5]}) == {3: 1.5}


@pytest.mark.parametrize("values", [[1.0, math.nan, 2.0], [math.nan, 1.0], [1.0, math.nan]])
def test_a_nan_is_the_worst_wherever_it_stands(values: list[float]) -> None:
    assert math.isnan(moe_metrics.worst(values))
    assert moe_metrics.worst([1.0, 3.0, 2.0]) == 3.0


def test_a_full_record_has_every_documented_tag_and_no_other() -> None:
    written = scalars(full_record())
    unwritten = [row.name for row in tags.TABLE if not any(row.matches(tag) for tag in written)]
    assert not unwritten
    assert all(tags.is_documented(tag) for tag in written)


def test_what_was_not_measured_has_no_tag() -> None:
    measured = scalars(bare_record())
    assert tags.LOSS_TRAIN in measured
    absent = ("moe/", "qk_clip/", "muon/", "device/", "memory/")
    assert not [tag for tag in measured if tag.startswith(absent)]
    assert tags.LOSS_VALID not in measured


def test_every_tag_constant_has_one_row() -> None:
    constants = [
        value
        for name, value in vars(tags).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, str)
    ]
    assert sorted(constants) == sorted(row.name for row in tags.TABLE)


def test_layer_tags_match_layer_numbers_only() -> None:
    assert tags.is_documented("moe/expert_imbalance/layer_007")
    assert tags.is_documented("moe/expert_imbalance/layer_1234")
    assert not tags.is_documented("moe/expert_imbalance/layer_7")
    assert not tags.is_documented("moe/expert_imbalance/layer_00x")
    assert not tags.is_documented("loss/train/layer_001")


def test_kind_tags_match_the_kinds_only() -> None:
    assert all(tags.is_documented(f"muon/update_rms/{kind}") for kind in tags.MUON_KINDS)
    assert not tags.is_documented("muon/update_rms/expert")
    assert not tags.is_documented("muon/update_rms/experts_2")
    assert not tags.is_documented("muon/update_rms/{kind}")


def test_a_tag_without_a_row_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match=r"tags\.py: \['optimizer/new'\]"):
        full_record(extra={"optimizer/new": 1.0, tags.DEVICE_POWER: 1.0})


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == tags.render_markdown(), (
        "run: python -m k2_megatron.train.tags --write docs/tensorboard.md"
    )


def test_the_page_has_a_row_of_five_cells_for_each_tag() -> None:
    rows = [line for line in tags.render_markdown().splitlines() if line.startswith("| `")]
    assert len(rows) == len(tags.TABLE)
    assert all(row.count("|") == 6 for row in rows)
    assert any(row.startswith("| `moe/expert_imbalance/layer_NNN` | ratio |") for row in rows)
    assert any(row.startswith("| `muon/update_rms/KIND` | 1 |") for row in rows)


def test_the_command_prints_and_writes_the_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "k2_megatron.train.tags"]
    printed = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout
    assert printed == tags.render_markdown()
    page = tmp_path / "page.md"
    silent = subprocess.run([*command, "--write", page], capture_output=True, check=True).stdout
    assert silent == b""
    assert page.read_text(encoding="utf-8") == tags.render_markdown()
