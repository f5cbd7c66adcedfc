# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""metrics.jsonl: one strict JSON object for each logged step, each step exactly once.

JSON has no NaN or infinity: such a value is written as the string "NaN", "Infinity" or
"-Infinity", and `read_metrics` turns it back into a float.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from k2_megatron.errors import UserError
from k2_megatron.train import moe_metrics
from k2_megatron.train.callbacks import Callback
from k2_megatron.train.metrics import StepRecord

FILE_NAME = "metrics.jsonl"

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsFileError(UserError):
    """metrics.jsonl is missing, empty or damaged; the text names the file and the line."""


class JsonlWriter(Callback):
    """Appends a line for each logged step; on resume first drops the steps to be done again."""

    def __init__(self, run_folder: Path) -> None:
        """Write to `run_folder`/metrics.jsonl; the folder is made when training starts."""
        self._path = run_folder / FILE_NAME
        self._file: TextIO | None = None

    def on_train_start(self, resumed_step: int) -> None:
        """Drop the lines past `resumed_step` and open the file for appending.

        Raises:
            MetricsFileError: a line that is not the last is damaged.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            drop_steps_after(self._path, resumed_step)
        self._file = self._path.open("a", encoding="utf-8")

    def on_step_end(self, record: StepRecord) -> None:
        """Write the line and flush it, so that a reader or a crash finds it whole."""
        assert self._file is not None, "on_train_start opens the file"
        self._file.write(to_line(record))
        self._file.flush()

    def on_rollback(self, step: int) -> None:
        """Drop the lines past `step`, as a resume does."""
        self.close()
        self.on_train_start(step)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def to_line(record: StepRecord) -> str:
    """Return the record as one line of strict JSON, newline included; absent values have no key."""
    values: dict[str, Any] = {
        "step": record.step,
        "loss": record.loss,
        "valid_loss": record.valid_loss,
        "lr": record.lr,
        "grad_norm": record.grad_norm,
        "skipped": record.skipped,
        "tokens": record.tokens,
        "consumed_tokens": record.consumed_tokens,
        "phase": record.phase,
        "phase_number": None if record.phase is None else record.phase_number,
        "step_seconds": record.step_seconds,
        "tokens_per_second": record.tokens_per_second,
        "model_flops": record.model_flops,
        "tflops_per_device": record.tflops_per_device,
        "world_size": record.world_size,
        "memory_bytes": record.memory_bytes,
    }
    for name, by_layer in (
        ("expert_imbalance", record.expert_imbalance),
        ("expert_bias_range", record.expert_bias_range),
    ):
        if by_layer:
            values[f"{name}_max"] = moe_metrics.worst(by_layer.values())
            values[name] = {str(layer): value for layer, value in by_layer.items()}
    if record.extra:
        values["extra"] = dict(record.extra)
    present = {key: value for key, value in values.items() if value is not None}
    return json.dumps(_encode(present), allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl, NaN and infinities as floats.

    A last line without its newline is left out: a writer is at it, or was killed at it.

    Raises:
        MetricsFileError: the file is missing, or a whole line is damaged.
    """
    if not path.is_file():
        raise MetricsFileError(f"{path}: there is no such file; a run writes it as it trains")
    return [_decode(values) for _, values in _lines(path)]


def drop_steps_after(path: Path, step: int) -> None:
    """Rewrite the file without the lines of later steps and without an unfinished last line.

    The new file takes the place of the old one in one move: a crash leaves one or the other.

    Raises:
        MetricsFileError: a whole line is damaged; the file is left as it was.
    """
    shorter = path.with_name(f"{path.name}.tmp")
    with shorter.open("w", encoding="utf-8") as target:
        for line, values in _lines(path):
            if values["step"] <= step:
                target.write(line)
        target.flush()
        os.fsync(target.fileno())
    os.replace(shorter, path)


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each finished line of the file with its object."""
    with path.open(encoding="utf-8", errors="replace") as source:
        for number, line in enumerate(source, start=1):
            if not line.endswith("\n"):
                return
            values = _object(line)
            if values is None:
                raise _damaged(path, number, line.strip())
            yield line, values


def parse_line(path: Path, line: bytes) -> dict[str, Any]:
    """One line as `read_metrics` gives it.

    Raises:
        MetricsFileError: it is damaged.
    """
    values = _object(line)
    if values is None:
        # It was read from the file's end: only now it matters how many lines are before it.
        with path.open("rb") as file:
            number = next((n for n, one in enumerate(file, 1) if one == line + b"\n"), 0)
        raise _damaged(path, number, line)
    decoded: dict[str, Any] = _decode(values)
    return decoded


def _object(line: str | bytes) -> dict[str, Any] | None:
    """The object of a line; None where it is damaged."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(values, dict) and isinstance(values.get("step"), int)
    return values if whole else None


def _damaged(path: Path, number: int, line: str | bytes) -> MetricsFileError:
    return MetricsFileError(
        f"{path}, line {number}: expected one JSON object with an integer 'step', found "
        f"{line[:60]!r}; remove that line to go on without it"
    )


def _encode(value: Any) -> Any:
    """Replace the floats that JSON lacks by their names, at any depth."""
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _decode(value: Any) -> Any:
    """Undo `_encode`."""
    if isinstance(value, dict):
        return {key: _decode(item) for key, item in value.items()}
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value
