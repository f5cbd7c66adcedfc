# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl: strict JSON, exact values, each step once over a resume."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from metrics_records import EXTRA, bare_record, full_record

from k2_megatron.errors import UserError
from k2_megatron.train import tags
from k2_megatron.train.jsonl import JsonlWriter, MetricsFileError, read_metrics, to_line
from k2_megatron.train.metrics import StepRecord, scalars


def write(folder: Path, resumed_step: int, records: list[StepRecord]) -> None:
    writer = JsonlWriter(folder)
    writer.on_train_start(resumed_step)
    for record in records:
        writer.on_step_end(record)
    writer.close()


def strict(line: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_a_line_holds_the_record_exactly(tmp_path: Path) -> None:
    write(tmp_path, 0, [full_record(3, loss=0.1 + 0.2)])
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {
            "step": 3,
            "loss": 0.1 + 0.2,
            "valid_loss": 2.625,
            "lr": 2e-4,
            "grad_norm": 0.75,
            "skipped": False,
            "tokens": 4096,
            "consumed_tokens": 12288,
            "phase": "main",
            "phase_number": 2,
            "step_seconds": 0.5,
            "tokens_per_second": 8192.0,
            "model_flops": 8e12,
            "tflops_per_device": 4.0,
            "world_size": 4,
            "memory_bytes": 3 * 2**30,
            "expert_imbalance": {"1": 2.0, "2": 1.0},
            "expert_imbalance_max": 2.0,
            "expert_bias_range": {"1": 0.75, "2": 0.125},
            "expert_bias_range_max": 0.75,
            "extra": EXTRA,
        }
    ]


def test_what_was_not_measured_has_no_key() -> None:
    line = strict(to_line(bare_record()))
    assert "loss" in line
    absent = {"valid_loss", "memory_bytes", "expert_imbalance", "expert_bias_range_max", "extra"}
    assert not absent & set(line)


def test_the_page_names_the_right_key_for_each_tag() -> None:
    record = full_record(2)
    line, values = strict(to_line(record)), scalars(record)
    for row in tags.TABLE:
        key = row.key.replace("LAYER", "1").replace("NNN", "001").replace("KIND", "router")
        found: Any = line
        for plain, quoted in re.findall(r'\.(\w+)|\["([^"]+)"\]', key.split(" / ")[0]):
            found = found[plain or quoted]
        if " / " in key:
            found /= line[key.split(" / .")[1]]
        assert values[row.name.format(layer=1, kind="router")] == found, row.name


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, '"NaN"'), (math.inf, '"Infinity"'), (-math.inf, '"-Infinity"')],
)
def test_numbers_that_json_lacks_are_strings_and_come_back(
    tmp_path: Path, value: float, text: str
) -> None:
    record = full_record(
        1, grad_norm=value, extra={tags.DEVICE_POWER: value}, expert_load={1: [0, 0]}
    )
    line = to_line(record)
    assert f'"grad_norm": {text}' in line
    parsed = strict(line)
    assert float(parsed["grad_norm"]) == pytest.approx(value, nan_ok=True)
    assert parsed["expert_imbalance"] == {"1": "NaN"}

    write(tmp_path, 0, [record])
    [back] = read_metrics(tmp_path / "metrics.jsonl")
    assert back["grad_norm"] == pytest.approx(value, nan_ok=True)
    assert back["extra"][tags.DEVICE_POWER] == pytest.approx(value, nan_ok=True)
    assert isinstance(back["expert_imbalance"]["1"], float)


def test_a_line_is_in_the_file_as_soon_as_the_step_ends(tmp_path: Path) -> None:
    writer = JsonlWriter(tmp_path)
    writer.on_train_start(0)
    for step in (1, 2):
        writer.on_step_end(bare_record(step))
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == step
    writer.close()


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    write(tmp_path, 0, [bare_record(step, loss=float(step)) for step in range(1, 7)])
    write(tmp_path, 4, [bare_record(step, loss=10.0 * step) for step in range(5, 8)])
    found = [(line["step"], line["loss"]) for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert found == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60), (7, 70)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_kept_lines_are_kept_to_the_byte(tmp_path: Path) -> None:
    write(tmp_path, 0, [full_record(step) for step in (1, 2, 3)])
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes().splitlines(keepends=True)
    write(tmp_path, 2, [])
    assert path.read_bytes() == b"".join(before[:2])


def test_a_run_from_scratch_starts_an_empty_file(tmp_path: Path) -> None:
    write(tmp_path, 0, [bare_record(1), bare_record(2)])
    write(tmp_path, 0, [])
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_line_cut_off_by_a_kill_is_dropped_on_resume(tmp_path: Path) -> None:
    write(tmp_path, 0, [bare_record(1), bare_record(2)])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    assert [line["step"] for line in read_metrics(path)] == [1]
    write(tmp_path, 1, [bare_record(2), bare_record(3)])
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]


@pytest.mark.parametrize("damage", ["\0\0\0", '{"step": ', "[1]", '{"loss": 1.0}', '{"step": "1"}'])
def test_a_damaged_line_is_named_and_nothing_is_lost(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 0, [bare_record(1), bare_record(3)])
    path = tmp_path / "metrics.jsonl"
    first, last = path.read_text().splitlines()
    path.write_text(f"{first}\n{damage}\n{last}\n")
    before = path.read_bytes()
    with pytest.raises(MetricsFileError) as error:
        JsonlWriter(tmp_path).on_train_start(1)
    assert str(error.value).startswith(f"{path}, line 2: expected one JSON object with an integer")
    assert repr(damage.strip()) in str(error.value)
    assert "remove that line" in str(error.value)
    assert isinstance(error.value, UserError)
    assert path.read_bytes() == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MetricsFileError, match=r"metrics\.jsonl: there is no such file"):
        read_metrics(tmp_path / "metrics.jsonl")
