# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A run from the command line: what it leaves behind, and that going on changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from k2_megatron.config.loader import load_config
from tests.cli.commands import CONFIG, k2

REQUIRED = {"step", "loss", "lr", "grad_norm", "skipped", "tokens", "consumed_tokens"}
REQUIRED |= {"expert_imbalance", "expert_imbalance_max", "expert_bias_range"}
# Times differ from run to run; all else is decided by the configuration.
TIMES = ("step_seconds", "tokens_per_second", "tflops_per_device")


def metrics(run: Path) -> list[dict[str, object]]:
    """The lines of metrics.jsonl, numbers as the text they are written in, without times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    objects = [json.loads(line, parse_float=str) for line in lines]
    for line in objects:
        extra = line.get("extra", {})
        for key in [key for key in extra if key == "muon/seconds" or key.startswith("straggler/")]:
            del extra[key]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in objects]


def test_resolved_config_loads_back_equal(whole_run):
    _, run = whole_run
    given = load_config(CONFIG, ["run.name=whole"])
    assert load_config(run / "resolved_config.yaml") == given


def test_metrics_have_every_step_once(whole_run):
    _, run = whole_run
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert all(line.keys() >= REQUIRED for line in lines)
    assert [line["step"] for line in lines if "valid_loss" in line] == [4, 8]
    assert float(str(lines[-1]["loss"])) < float(str(lines[0]["loss"]))


def test_tensorboard_has_every_step(whole_run):
    _, run = whole_run
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/train")] == list(range(1, 9))
    before_training = 0
    assert [event.step for event in events.Scalars("loss/valid")] == [before_training, 4, 8]


def test_curves_and_checkpoints_are_there(whole_run):
    _, run = whole_run
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    checkpoints = run / "checkpoints"
    kept = sorted(path.name for path in checkpoints.iterdir())
    assert kept == ["latest", "step_00000004", "step_00000006", "step_00000008"]
    assert (checkpoints / "latest").read_text() == "step_00000008\n"
    inspected = k2(run, "checkpoint", "inspect", "checkpoints/step_00000008")
    assert inspected.code == 0 and "whole: every checksum is right" in inspected.out


def test_output_is_a_line_a_step_and_nothing_else(whole_run):
    done, run = whole_run
    assert done.err == ""
    lines = done.out.splitlines()
    assert "pp2" in lines[1]
    # The optimizer's table, which ends with what Newton-Schulz costs.
    assert lines[2].split()[:3] == ["matrix", "number", "rule"]
    end = next(index for index, line in enumerate(lines) if line.startswith("Newton-Schulz: "))
    assert lines[end + 1].startswith("before training: valid ")
    steps = lines[end + 2 : end + 10]
    assert [line.split(" |")[0] for line in steps] == [f"step {n}/8" for n in range(1, 9)]
    assert lines[end + 10 :] == [
        "step 8 of 8 is done: runs/whole/checkpoints",
        "curves: tensorboard --logdir runs/whole/tensorboard",
        "picture: runs/whole/curves.png",
    ]
    log = (run / "logs" / "rank_00001.log").read_text()
    assert log.count("\n") == 1 and log.startswith("--- "), log  # the line of the start


def test_stopped_and_resumed_run_equals_the_whole_one(place, whole_run):
    """The same command again goes on; every number is the same, digit by digit."""
    command = ["train", "tiny.yaml", "--set=run.name=halves"]
    first = k2(place, *command, "--set=run.stop_after_step=3")
    assert first.code == 0 and "step 3 of 8 is done" in first.out
    run = place / "runs" / "halves"
    assert [line["step"] for line in metrics(run)] == [1, 2, 3]
    second = k2(place, *command)
    assert second.code == 0 and second.err == ""
    assert "resumed after step 3 from " in second.out and "step 3/8" not in second.out
    found = metrics(run)
    assert found[2].pop("valid_loss")  # a run that stops also evaluates
    assert found == metrics(whole_run[1])
    again = k2(place, *command, "--set=run.stop_after_step=5")
    assert again.code == 0
    assert "nothing to do: step 8 is done, and the run ends after step 5\n" in again.out
    assert len(metrics(run)) == 8
    assert "process    none is training; done\n" in k2(place, "status", "halves").out
