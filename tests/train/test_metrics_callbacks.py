# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The order of callbacks, the progress line, and the device monitor beside a stand-in for NVML."""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from metrics_records import DEVICE_VALUES, bare_record, full_record

from k2_megatron.train import tags
from k2_megatron.train.callbacks import Callback, CallbackList
from k2_megatron.train.device_monitor import DeviceMonitor
from k2_megatron.train.jsonl import JsonlWriter, MetricsFileError, read_metrics
from k2_megatron.train.metrics import StepRecord
from k2_megatron.train.progress import (
    ProgressPrinter,
    format_count,
    format_duration,
    format_line,
)


class Noting(Callback):
    """Notes each call; `values` is what it measures."""

    def __init__(
        self, name: str, notes: list[str], values: Mapping[str, float] | None = None
    ) -> None:
        self.name, self.notes, self.values = name, notes, values or {}
        self.fails_to_end: Exception | None = None
        self.fails_to_close: Exception | None = None

    def on_train_start(self, resumed_step: int) -> None:
        self.notes.append(f"{self.name} start {resumed_step}")

    def measure(self, record: StepRecord) -> Mapping[str, float]:
        self.notes.append(f"{self.name} measure")
        return self.values

    def on_step_end(self, record: StepRecord) -> None:
        self.notes.append(f"{self.name} step {record.step} {sorted(record.extra.values())}")

    def on_valid(self, step: int, valid_loss: float) -> None:
        self.notes.append(f"{self.name} valid {step} {valid_loss}")

    def on_train_end(self) -> None:
        self.notes.append(f"{self.name} end")
        if self.fails_to_end:
            raise self.fails_to_end

    def close(self) -> None:
        self.notes.append(f"{self.name} close")
        if self.fails_to_close:
            raise self.fails_to_close


def run_once(callbacks: CallbackList) -> None:
    callbacks.on_train_start(4)
    callbacks.on_valid(5, 1.5)
    callbacks.on_step_end(bare_record(5, extra={tags.DEVICE_POWER: 1.0}))
    callbacks.on_train_end()
    callbacks.close()


def test_calls_come_in_order_and_all_measure_before_any_writes() -> None:
    notes: list[str] = []
    first = Noting("a", notes)
    second = Noting("b", notes, {tags.DEVICE_SM_CLOCK: 2.0})
    run_once(CallbackList([first, second], writes=True))
    assert notes == [
        "a start 4",
        "b start 4",
        "a valid 5 1.5",
        "b valid 5 1.5",
        "a measure",
        "b measure",
        "a step 5 [1.0, 2.0]",
        "b step 5 [1.0, 2.0]",
        "a end",
        "b end",
        "b close",
        "a close",
    ]


def test_a_rank_that_does_not_write_calls_nothing(tmp_path: Path) -> None:
    notes: list[str] = []
    run_once(CallbackList([Noting("a", notes), JsonlWriter(tmp_path)], writes=False))
    assert notes == []
    assert list(tmp_path.iterdir()) == []


def test_every_callback_is_closed_though_one_fails() -> None:
    notes: list[str] = []
    callbacks = [Noting(name, notes) for name in "abc"]
    callbacks[1].fails_to_close = RuntimeError("b cannot close")
    with pytest.raises(RuntimeError, match="b cannot close"):
        CallbackList(callbacks, writes=True).close()
    assert notes == ["c close", "b close", "a close"]


@pytest.mark.parametrize("moment", ["fails_to_end", "fails_to_close"])
def test_a_full_disk_at_the_end_is_said_and_does_not_raise(moment: str) -> None:
    """A complete run, its checkpoint saved, ended with a traceback."""
    notes: list[str] = []
    said: list[str] = []
    watchers = [Noting(name, notes) for name in "abc"]
    setattr(watchers[1], moment, OSError("no space left"))
    callbacks = CallbackList(watchers, writes=True, say=said.append)
    callbacks.on_train_end()
    callbacks.close()
    assert notes == ["a end", "b end", "c end", "c close", "b close", "a close"]
    assert said == ["warning: Noting cannot write: no space left"]


def test_a_disk_that_stays_full_is_said_once_for_each_callback() -> None:
    """A moment in which nothing is written counted as room, and the next step said it again."""
    full = {"a": True, "b": True}

    class Refusing(Noting):
        def on_step_end(self, record: StepRecord) -> None:
            if full[self.name]:
                raise OSError(f"{self.name}: no space left")

    said: list[str] = []
    watchers = [Refusing(name, []) for name in full]
    callbacks = CallbackList(watchers, writes=True, say=said.append)
    for step in (1, 2):
        callbacks.on_step_end(bare_record(step))
        callbacks.on_valid(step, 1.0)
    once = [f"warning: Refusing cannot write, training goes on: {name}: no" for name in "ab"]
    assert [text.removesuffix(" space left") for text in said] == once
    for full["b"] in (False, True):
        callbacks.on_step_end(bare_record(3))
    assert [text.removesuffix(" space left") for text in said] == [*once, once[1]]


def test_a_rollback_that_ended_the_run_is_not_tried_again_at_its_close() -> None:
    """It would raise another error over the one that all ranks have agreed on."""

    class Damaged(Callback):
        def on_rollback(self, step: int) -> None:
            raise MetricsFileError("line 1 is damaged")

    callbacks = CallbackList([Damaged()], writes=True)
    with pytest.raises(MetricsFileError):
        callbacks.on_rollback(3)
    callbacks.close()


def test_a_rollback_that_the_disk_refuses_comes_before_the_next_step() -> None:
    """Until it goes well nothing is written behind lines that should be gone; it is said once."""
    notes: list[str] = []
    refusals = 2

    class Refusing(Noting):
        def on_rollback(self, step: int) -> None:
            nonlocal refusals
            refusals -= 1
            if refusals >= 0:
                raise OSError("no space left")
            notes.append(f"a back to {step}")

    said: list[str] = []
    callbacks = CallbackList([Refusing("a", notes)], writes=True, say=said.append)
    callbacks.on_rollback(3)
    for step in (4, 5, 6):
        callbacks.on_step_end(bare_record(step))
    assert [note for note in notes if "measure" not in note] == [
        "a back to 3",
        "a step 5 []",
        "a step 6 []",
    ]
    assert said == ["warning: Refusing cannot write, training goes on: no space left"]


def test_the_base_callback_watches_nothing() -> None:
    run_once(CallbackList([Callback()], writes=True))


def test_the_progress_line() -> None:
    record = full_record(7, tokens=6_172_500, model_flops=4 * 171.25e12)
    assert format_line(record, 1000, 3723) == (
        "step    7/1000 | loss   2.5000 | valid   2.6250 | lr 2.00e-04 | grad norm    0.750 | "
        " 12.3M tokens/s |  342.500 TFLOP/s/device | ETA     01:02:03"
    )


def test_a_skipped_step_without_validation_says_so() -> None:
    record = bare_record(1000, loss=math.nan, grad_norm=math.inf, skipped=True)
    assert format_line(record, 1000, 0) == (
        "step 1000/1000 | loss      nan | valid        - | lr 2.00e-04 | grad norm      inf | "
        " 8.19k tokens/s |    4.000 TFLOP/s/device | ETA     00:00:00 | step skipped"
    )


def test_columns_stay_aligned() -> None:
    lines = [
        format_line(full_record(1, loss=12.0, tokens=9, lr=0.0), 60000, 9e5),
        format_line(bare_record(60000, loss=math.nan, tokens=67_108_864), 60000, 1),
    ]
    bars = [[place for place, sign in enumerate(line) if sign == "|"] for line in lines]
    assert bars[0] == bars[1]
    assert len(lines[0]) == len(lines[1])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4, "0"),
        (512, "512"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (12_345, "12.3k"),
        (123_456, "123k"),
        (999_600, "1.00M"),
        (4_560_000, "4.56M"),
        (9_996_000, "10.0M"),
        (1.2e9, "1.20B"),
        (3.4e12, "3.40T"),
        (15.5e12, "15.5T"),
        (1.5e15, "1500T"),
    ],
)
def test_counts_are_short(value: float, text: str) -> None:
    assert format_count(value) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00:00"), (59.6, "00:01:00"), (3723, "01:02:03"), (183845, "2d 03:04:05")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def etas(steps_and_times: list[tuple[int, float]], total_steps: int) -> list[str]:
    stream, times = io.StringIO(), iter([time for _, time in steps_and_times])
    printer = ProgressPrinter(total_steps, stream, clock=lambda: next(times))
    for step, _ in steps_and_times:
        printer.on_step_end(bare_record(step, step_seconds=2.0))
    return [line.split("ETA")[1].strip() for line in stream.getvalue().splitlines()]


def test_the_eta_takes_the_first_step_s_own_time_then_the_wall_clock() -> None:
    # 2 s a step at first; then 10 steps in 50 s, then 20 in 60 s: 5 s and 3 s for each step left.
    assert etas([(10, 100.0), (20, 150.0), (30, 160.0)], 100) == [
        "00:03:00",
        "00:06:40",
        "00:03:30",
    ]


def test_the_eta_forgets_old_steps_and_ends_at_zero() -> None:
    slow = [(1, 0.0), (2, 1000.0)]
    quick = [(step, 1000.0 + step) for step in range(3, 31)]
    assert etas(slow + quick, 30)[-2:] == ["00:00:01", "00:00:00"]


def test_each_line_is_flushed_and_has_no_control_characters() -> None:
    class Log(io.StringIO):
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1

    log = Log()
    ProgressPrinter(5, log).on_step_end(bare_record(1))
    assert log.flushes == 1
    assert log.getvalue().count("\n") == 1
    assert log.getvalue().strip().isprintable()


class NVMLError(Exception):
    """Stand-in for the error of the nvidia-ml-py module."""


class FakeNvml:
    """Stand-in for the nvidia-ml-py module: one GPU, named quantities can fail."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, failing: set[str] | None = None) -> None:
        self.failing = failing or set()
        self.calls: list[str] = []

    def _answer(self, name: str, value: Any) -> Any:
        self.calls.append(name)
        if name in self.failing:
            raise NVMLError("Not Supported")
        return value

    def nvmlInit(self) -> None:
        self._answer("init", None)

    def nvmlShutdown(self) -> None:
        self._answer("shutdown", None)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return str(self._answer("handle", f"handle of {uuid}"))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        assert handle == "handle of GPU-1234"
        return int(self._answer("power", 651_500))

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return int(self._answer(f"clock {clock}", {1: 1980, 2: 2619}[clock]))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(used=self._answer("memory", 70 * 10**9))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=self._answer("utilization", 99), memory=50)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return int(self._answer("temperature", 61))


@pytest.mark.parametrize("uuid", ["1234", "GPU-1234"])
def test_the_monitor_adds_what_nvml_says_in_the_units_of_the_table(
    tmp_path: Path, uuid: str
) -> None:
    said: list[str] = []
    nvml = FakeNvml()
    callbacks = CallbackList(
        [JsonlWriter(tmp_path), DeviceMonitor(uuid, nvml, said.append)], writes=True
    )
    callbacks.on_train_start(0)
    callbacks.on_step_end(bare_record())
    callbacks.close()
    [line] = read_metrics(tmp_path / "metrics.jsonl")
    assert line["extra"] == DEVICE_VALUES
    assert said == []
    assert (nvml.calls[0], nvml.calls[-1]) == ("init", "shutdown")


@pytest.mark.parametrize("failing", ["init", "handle"])
def test_where_nvml_fails_it_says_so_once_and_writes_nothing(failing: str) -> None:
    said: list[str] = []
    monitor = DeviceMonitor("1234", FakeNvml({failing}), said.append)
    monitor.on_train_start(0)
    assert [monitor.measure(bare_record(step)) for step in (1, 2)] == [{}, {}]
    monitor.close()
    assert said == ["device monitor: NVML cannot watch GPU-1234 (Not Supported); no device/ values"]


def test_a_quantity_that_fails_is_said_once_and_the_others_go_on() -> None:
    said: list[str] = []
    nvml = FakeNvml()
    monitor = DeviceMonitor("1234", nvml, said.append)
    monitor.on_train_start(0)
    assert monitor.measure(bare_record(1)) == DEVICE_VALUES
    nvml.failing = {"power", "utilization"}
    rest = {
        tag: value
        for tag, value in DEVICE_VALUES.items()
        if tag not in (tags.DEVICE_POWER, tags.DEVICE_UTILIZATION)
    }
    assert monitor.measure(bare_record(2)) == rest
    assert monitor.measure(bare_record(3)) == rest
    assert said == [
        "device monitor: NVML cannot read device/power_watts (Not Supported), "
        "device/utilization_percent (Not Supported); no longer written"
    ]


def test_without_a_gpu_nothing_is_said_and_nvml_is_not_touched(
    capfd: pytest.CaptureFixture[str],
) -> None:
    nvml = FakeNvml({"init"})
    for monitor in (DeviceMonitor(None, nvml), DeviceMonitor(None)):
        monitor.on_train_start(0)
        assert monitor.measure(bare_record()) == {}
        monitor.close()
    assert nvml.calls == []
    assert tuple(capfd.readouterr()) == ("", "")


def test_the_stand_in_has_the_names_of_the_true_module() -> None:
    import pynvml

    names = [name for name in dir(FakeNvml) if name.lower().startswith("nvml")]
    assert len(names) == 12
    assert [name for name in names if not hasattr(pynvml, name)] == []
    assert FakeNvml.NVML_CLOCK_SM == pynvml.NVML_CLOCK_SM
    assert FakeNvml.NVML_CLOCK_MEM == pynvml.NVML_CLOCK_MEM
    assert FakeNvml.NVML_TEMPERATURE_GPU == pynvml.NVML_TEMPERATURE_GPU
