# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What TensorBoard's own reader finds in a run's event files."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from metrics_records import EXTRA, bare_record, full_record
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)
from tensorboard.plugins.custom_scalar import layout_pb2  # type: ignore[import-untyped]

from k2_megatron.train import tags
from k2_megatron.train.layout import CHARTS
from k2_megatron.train.metrics import StepRecord
from k2_megatron.train.tensorboard import TensorBoardWriter

EXPECTED = {
    "loss/train": 2.5,
    "loss/valid": 2.625,
    "optimizer/lr": 2e-4,
    "optimizer/grad_norm": 0.75,
    "optimizer/skipped_step": 0.0,
    "throughput/tokens_per_second": 8192.0,
    "throughput/tokens_per_second_per_device": 2048.0,
    "throughput/step_seconds": 0.5,
    "throughput/tflops_per_device": 4.0,
    "progress/consumed_tokens": 4096.0,
    "progress/phase": 2.0,
    "memory/max_allocated_bytes": 3.0 * 2**30,
    "moe/expert_imbalance/layer_001": 2.0,
    "moe/expert_imbalance/layer_002": 1.0,
    "moe/expert_imbalance_max": 2.0,
    "moe/expert_bias_range/layer_001": 0.75,
    "moe/expert_bias_range/layer_002": 0.125,
    "moe/expert_bias_range_max": 0.75,
    **EXTRA,
}

LAYOUT_TAG = "custom_scalars__config__"


def write(folder: Path, resumed_step: int, records: list[StepRecord]) -> None:
    writer = TensorBoardWriter(folder)
    writer.on_train_start(resumed_step)
    for record in records:
        writer.on_step_end(record)
    writer.on_train_end()
    writer.close()


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def test_every_documented_tag_is_read_back_as_written(tmp_path: Path) -> None:
    write(tmp_path, 0, [full_record(1)])
    events = read(tmp_path)
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert all(any(row.matches(tag) for tag in found) for row in tags.TABLE)
    assert {tag: [point.step for point in points] for tag, points in found.items()} == {
        tag: [1] for tag in EXPECTED
    }
    # Event files hold fp32.
    assert {tag: points[0].value for tag, points in found.items()} == {
        tag: float(np.float32(value)) for tag, value in EXPECTED.items()
    }


def test_the_first_charts_are_laid_out(tmp_path: Path) -> None:
    """TensorBoard's page of custom scalars; every chart shows a tag that is written."""
    write(tmp_path, 3, [full_record(4)])
    events = read(tmp_path)
    (event,) = events.Tensors(LAYOUT_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    shown = {
        chart.title: list(chart.multiline.tag)
        for category in layout.category
        for chart in category.chart
    }
    assert [category.title for category in layout.category] == list(CHARTS)
    assert list(shown)[:3] == ["loss", "gradient norm", "learning rate"]
    for title, patterns in shown.items():
        for pattern in patterns:
            assert any(re.search(pattern, tag) for tag in EXPECTED), f"{title}: {pattern}"
    (layers,) = shown["busiest over mean, each layer"]
    assert {tag for tag in EXPECTED if re.search(layers, tag)} == {
        "moe/expert_imbalance/layer_001",
        "moe/expert_imbalance/layer_002",
    }


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    write(tmp_path, 0, [bare_record(step, loss=float(step)) for step in range(1, 7)])
    write(tmp_path, 4, [bare_record(step, loss=10.0 * step) for step in range(5, 8)])
    points = [(point.step, point.value) for point in read(tmp_path).Scalars(tags.LOSS_TRAIN)]
    assert points == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60), (7, 70)]


def test_a_run_from_scratch_in_an_old_folder_hides_the_old_run(tmp_path: Path) -> None:
    write(tmp_path, 0, [bare_record(step, loss=float(step)) for step in range(1, 4)])
    write(tmp_path, 0, [bare_record(1, loss=9.0)])
    points = [(point.step, point.value) for point in read(tmp_path).Scalars(tags.LOSS_TRAIN)]
    assert points == [(1, 9)]


def test_a_skipped_step_keeps_its_nan(tmp_path: Path) -> None:
    write(tmp_path, 0, [bare_record(1, grad_norm=math.nan, skipped=True)])
    events = read(tmp_path)
    assert math.isnan(events.Scalars(tags.GRAD_NORM)[0].value)
    assert events.Scalars(tags.SKIPPED_STEP)[0].value == 1


def test_nothing_is_opened_before_training_starts(tmp_path: Path) -> None:
    TensorBoardWriter(tmp_path).close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(AssertionError, match="on_train_start"):
        TensorBoardWriter(tmp_path).on_step_end(bare_record())
