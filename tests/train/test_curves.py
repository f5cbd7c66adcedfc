# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""curves.png: drawn from whatever metrics.jsonl holds, alone and while training."""

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from metrics_records import bare_record, full_record

from k2_megatron.config.run import RunConfig
from k2_megatron.train import curves as curves_module
from k2_megatron.train.callbacks import CallbackList
from k2_megatron.train.curves import CurvesWriter, render_curves, running_mean
from k2_megatron.train.jsonl import JsonlWriter, MetricsFileError
from k2_megatron.train.metrics import StepRecord


def write_metrics(folder: Path, records: list[StepRecord]) -> None:
    writer = JsonlWriter(folder)
    writer.on_train_start(0)
    for record in records:
        writer.on_step_end(record)
    writer.close()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "records",
    [
        pytest.param([full_record(1)], id="one step"),
        pytest.param([bare_record(step) for step in range(5, 9)], id="dense, from step 5"),
        pytest.param([full_record(step, loss=9 / step) for step in range(1, 150)], id="smoothed"),
        pytest.param(
            [bare_record(1, loss=math.nan, grad_norm=math.inf, skipped=True)], id="nothing finite"
        ),
        pytest.param([bare_record(1, grad_norm=0.0, lr=0.0)], id="zeros"),
        pytest.param([full_record(1, expert_load={1: [0, 0]}), full_record(2)], id="no load"),
        pytest.param([bare_record(1), full_record(2)], id="load in one line only"),
    ],
)
def test_a_picture_is_drawn_without_a_warning(tmp_path: Path, records: list[StepRecord]) -> None:
    write_metrics(tmp_path, records)
    picture = render_curves(tmp_path)
    assert picture == tmp_path / "curves.png"
    assert imread(picture).shape[:2] == (1000, 1200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_the_picture_shows_the_values(tmp_path: Path) -> None:
    pictures = []
    for loss in (3.0, 4.0, 3.0):
        write_metrics(tmp_path, [bare_record(1), bare_record(2, loss=loss)])
        pictures.append(imread(render_curves(tmp_path)))
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


def test_no_step_and_no_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(MetricsFileError, match="there is no such file"):
        render_curves(tmp_path)
    write_metrics(tmp_path, [])
    with pytest.raises(MetricsFileError, match=r"metrics\.jsonl: no logged step in it yet"):
        render_curves(tmp_path)


def test_the_command_prints_the_path_or_the_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "k2_megatron.train.curves", str(tmp_path)]
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith(str(tmp_path / "metrics.jsonl"))
    assert "Traceback" not in failed.stderr
    write_metrics(tmp_path, [bare_record(1)])
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(tmp_path / "curves.png")


def test_drawing_imports_neither_torch_nor_pyplot(tmp_path: Path) -> None:
    write_metrics(tmp_path, [full_record(1)])
    program = (
        "import pathlib, sys; from k2_megatron.train.curves import render_curves; "
        "render_curves(pathlib.Path(sys.argv[1])); "
        "print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def wait_for(picture: Path) -> None:
    until = time.monotonic() + 60
    while not picture.exists():
        assert time.monotonic() < until, "no picture after a minute"
        time.sleep(0.05)


def test_the_writer_draws_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    curves = CurvesWriter(tmp_path, every_steps=3)
    callbacks = CallbackList([JsonlWriter(tmp_path), curves], writes=True)
    callbacks.on_train_start(10)
    for step in (11, 12):
        callbacks.on_step_end(bare_record(step))
        assert curves._process is None
    callbacks.on_step_end(bare_record(13))
    wait_for(picture)
    first = picture.read_bytes()
    drawing = curves._process
    assert drawing is not None
    drawing.wait()
    callbacks.on_step_end(bare_record(14))
    assert curves._process is drawing
    callbacks.on_train_end()
    assert picture.read_bytes() != first
    whole = picture.read_bytes()
    callbacks.close()
    assert render_curves(tmp_path).read_bytes() == whole


def test_a_validation_is_drawn_at_once(tmp_path: Path) -> None:
    callbacks = CallbackList([JsonlWriter(tmp_path), CurvesWriter(tmp_path)], writes=True)
    callbacks.on_train_start(0)
    callbacks.on_valid(1, 2.625)
    callbacks.on_step_end(full_record(1))
    wait_for(tmp_path / "curves.png")
    callbacks.close()


def test_a_failure_is_said_once_and_does_not_end_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "metrics.jsonl").write_text("damaged\n")
    curves = CurvesWriter(tmp_path, every_steps=1, say=said.append)
    curves.on_train_start(0)
    curves.on_step_end(bare_record(1))
    curves.on_train_end()
    curves.close()
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / 'curves.png'} could not be drawn: ")
    assert "metrics.jsonl, line 1: expected one JSON object" in said[0]


def test_a_run_without_a_logged_step_has_no_picture_and_no_message(tmp_path: Path) -> None:
    said: list[str] = []
    curves = CurvesWriter(tmp_path, say=said.append)
    curves.on_train_start(0)
    curves.on_train_end()
    write_metrics(tmp_path, [])
    curves.on_train_end()
    assert said == []
    assert not (tmp_path / "curves.png").exists()


def test_close_ends_a_drawing_under_way(tmp_path: Path) -> None:
    write_metrics(tmp_path, [bare_record(1)])
    curves = CurvesWriter(tmp_path, every_steps=1)
    curves.on_step_end(bare_record(1))
    process = curves._process
    assert process is not None
    curves.close()
    assert process.returncode is not None


def stand_in(place: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """Let a script take the place of the interpreter that draws."""
    script = place / "python"
    script.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_the_end_of_a_run_does_not_wait_for_a_drawing_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited up to ten minutes for two of them, until the other ranks' barrier gave up."""
    assert 0.1 * RunConfig(name="a").distributed_timeout_seconds >= curves_module.LAST_SECONDS
    monkeypatch.setattr(curves_module, "LAST_SECONDS", 3.0)
    run = tmp_path / "run"
    begun = f"touch {tmp_path}/$$ {run}/.curves.png.$$"
    stand_in(tmp_path, monkeypatch, begun, "exec sleep 100")
    write_metrics(run, [bare_record(1)])
    said: list[str] = []
    curves = CurvesWriter(run, every_steps=1, say=said.append)
    curves.on_step_end(bare_record(1))
    assert curves._process is not None
    wait_for(run / f".curves.png.{curves._process.pid}")
    before = time.monotonic()
    curves.on_train_end()
    assert 3 <= time.monotonic() - before < 6, "it has waited for both"
    assert said == [
        f"{run / 'curves.png'} could not be drawn: the run ends and does not wait longer than 3 s; "
        f"python -m k2_megatron.train.curves {run} draws it"
    ]
    assert len([path for path in tmp_path.iterdir() if path.name.isdigit()]) == 2
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


def test_a_drawing_that_cannot_be_started_is_said_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    curves = CurvesWriter(tmp_path, every_steps=3)
    callbacks = CallbackList([JsonlWriter(tmp_path), curves], writes=True, say=said.append)
    callbacks.on_train_start(0)
    with monkeypatch.context() as missing:
        missing.setattr(sys, "executable", str(tmp_path / "python"))
        for step in range(1, 5):
            callbacks.on_step_end(bare_record(step))
        callbacks.on_train_end()
    [text] = said
    assert text.startswith("warning: CurvesWriter cannot write, training goes on: [Errno 2]")
    callbacks.on_step_end(bare_record(5))
    assert curves._process is not None
    callbacks.close()


def test_a_picture_that_a_full_disk_cuts_is_removed(tmp_path: Path) -> None:
    """Each one would take some more of a full disk."""
    write_metrics(tmp_path, [bare_record(1)])
    command = f"ulimit -f 4; exec {sys.executable} -m k2_megatron.train.curves {tmp_path}"
    drawn = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert drawn.returncode == 1 and "File too large" in drawn.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_running_mean_keeps_ends_and_leaves_out_what_is_not_finite() -> None:
    few = np.array([1.0, math.inf, 3.0])
    assert np.array_equal(running_mean(few), [1.0, math.nan, 3.0], equal_nan=True)
    line = np.arange(300.0)
    np.testing.assert_allclose(running_mean(line), line, rtol=0, atol=1e-9)
    line[100] = math.nan
    smooth = running_mean(line)
    assert math.isnan(smooth[100])
    # Window of seven, one of them missing.
    assert smooth[101] == pytest.approx(sum({98, 99, 100, 101, 102, 103, 104} - {100}) / 6)
    assert smooth[0] == 0.0
    assert smooth[-1] == 299.0
