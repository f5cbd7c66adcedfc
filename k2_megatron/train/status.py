# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, read from the files of its folder alone, also while it writes them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from k2_megatron.checkpoint.folder import latest, list_partials
from k2_megatron.config.loader import load_config
from k2_megatron.errors import UserError
from k2_megatron.run_folder import RunFolder
from k2_megatron.train import tags
from k2_megatron.train.events import FILE_NAME as EVENTS_NAME
from k2_megatron.train.events import NEXT_PHASE, read_events
from k2_megatron.train.jsonl import FILE_NAME, parse_line

_RECENT_STEPS = 20
_CHUNK_BYTES = 1 << 20
_REASON_LENGTH = 200


@dataclass(frozen=True, kw_only=True)
class Status:
    """What `k2-megatron status` prints; None where it is not known yet.

    Attributes:
        alive: a process trains in the folder; None where that cannot be seen from this machine.
        holder: the process that trains, or was the last to.
        step, last_step: the last logged one, and the one after which the run ends.
        loss, valid_loss: of that step, and of the last validation.
        line_age_seconds: since the last line of metrics.
        checkpoint, checkpoint_step, checkpoint_age_seconds: the newest with every file at its size;
            their checksums are not verified.
        saving: checkpoints that are being written, or that a dead process left unfinished.
        tokens_per_second, tflops_per_device, step_seconds: medians of the last logged steps.
        eta_seconds: of the steps that are left, without validations and saves.
        restarts: starts beside the first, those that a next phase needs, and those that found the
            run done.
        ended: what the last start came to, if anybody has said so.
        submitted: `launch` has made a job of it, of which nothing is known yet.
    """

    run: str
    alive: bool | None
    holder: str | None
    slurm_job: str | None
    world_size: int | None
    step: int
    last_step: int | None
    consumed_tokens: int
    loss: float | None
    valid_loss: float | None
    valid_step: int | None
    grad_norm: float | None
    line_age_seconds: float | None
    checkpoint: str | None
    checkpoint_step: int | None
    checkpoint_age_seconds: float | None
    saving: tuple[str, ...]
    starts: int
    restarts: int
    skipped_steps: int
    rollbacks: int
    failed_saves: int
    tokens_per_second: float | None
    tflops_per_device: float | None
    step_seconds: float | None
    eta_seconds: float | None
    ended: str | None
    submitted: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON data; numbers that are not finite are None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


def find_run(given: str) -> RunFolder:
    """The folder that a user means: a path, or the name of a run below `runs/`.

    Raises:
        UserError: there is none.
    """
    for path in (Path(given), Path("runs") / given):
        folder = RunFolder(path)
        files = (folder.resolved_config, folder.lock, folder.slurm_script, path / EVENTS_NAME)
        if any(file.exists() for file in files):
            return folder
    raise UserError(
        f"{given}: not the folder of a run, and no run of that name in runs/; allowed: a folder "
        "that `k2-megatron train` or `launch` has made, or its name where it lies in runs/"
    )


def status_of(folder: RunFolder) -> Status:
    """Read where a run stands.

    Raises:
        ConfigError: its resolved_config.yaml cannot be read.
        MetricsFileError: a whole line of metrics.jsonl is damaged.
    """
    lines = _last_lines(folder.path / FILE_NAME)
    recent = list(islice(lines, _RECENT_STEPS))
    newest = recent[0] if recent else {}
    valid = next((line for line in [*recent, *_until_valid(lines)] if "valid_loss" in line), {})
    events = read_events(folder.path)
    starts = [event for event in events if event["event"] == "start"]
    checkpoint = latest(folder.checkpoints)
    config = load_config(folder.resolved_config) if folder.resolved_config.exists() else None
    last = None if config is None else config.run.stop_after_step or config.schedule.train_steps
    start = starts[-1] if starts else {}
    step = newest.get("step", int(_number(start, "step") or 0))
    seconds = _median(recent, "step_seconds")
    return Status(
        run=str(folder.path),
        alive=folder.is_claimed(),
        holder=folder.holder(),
        slurm_job=start.get("slurm_job"),
        world_size=start.get("world_size"),
        step=step,
        last_step=last,
        consumed_tokens=int(_number(newest, "consumed_tokens") or 0),
        loss=_number(newest, "loss"),
        valid_loss=_number(valid, "valid_loss"),
        valid_step=valid.get("step"),
        grad_norm=_number(newest, "grad_norm"),
        line_age_seconds=_age(folder.path / FILE_NAME) if newest else None,
        checkpoint=None if checkpoint is None else str(checkpoint),
        checkpoint_step=None if checkpoint is None else int(checkpoint.name.split("_")[1]),
        checkpoint_age_seconds=None if checkpoint is None else _age(checkpoint / "manifest.json"),
        saving=tuple(path.name for path in list_partials(folder.checkpoints)),
        starts=len(starts),
        restarts=_restarts(events),
        skipped_steps=_skipped(newest),
        rollbacks=sum(event["event"] == "rollback" for event in events),
        failed_saves=sum(event["event"] == "save_failed" for event in events),
        tokens_per_second=_median(recent, "tokens_per_second"),
        tflops_per_device=_median(recent, "tflops_per_device"),
        step_seconds=seconds,
        eta_seconds=None if seconds is None or last is None else seconds * max(last - step, 0),
        ended=_ending(events),
        submitted=folder.slurm_script.exists() and not events and not folder.lock.exists(),
    )


_ENDINGS = {
    "ended": "done",
    "diagnosis": "ended: too many skipped steps",
    "rollback_refused": "ended: too many spikes of the loss",
    "hang": "ended: no progress",
}


def _ending(events: Sequence[dict[str, Any]]) -> str | None:
    """What became of the last start; None where nobody has said so."""
    found, launcher = None, None
    for event in events:
        name, reason = event["event"], _first_line(event.get("reason"))
        if name == "start":
            found = launcher = None
        elif name == "stopped":
            found = f"stopped ({reason}), a checkpoint saved"
        elif name == "failed":
            found = f"ended: {reason}"
        elif name == "rank_failed":
            launcher = f"ended: {reason}"
        else:
            found = _ENDINGS.get(name, found)
    # The launcher sees that a rank has ended; the run itself knows why.
    return found or launcher


def _first_line(reason: object) -> str:
    lines = str(reason or "").splitlines() or ["no reason given"]
    return lines[0] if len(lines[0]) <= _REASON_LENGTH else f"{lines[0][:_REASON_LENGTH]}..."


def _restarts(events: Sequence[dict[str, Any]]) -> int:
    """Starts after the first that trained; one that goes on with the next phase was planned."""
    count, started, planned = 0, False, False
    for event, after in pairwise([*events, {}]):
        if event["event"] == "start" and not _did_nothing(event, after):
            count += started and not planned
            started, planned = True, False
        elif event["event"] == "stopped":
            planned = event.get("reason") == NEXT_PHASE
    return count


def _did_nothing(start: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a start found the run done: its end is at the step it began after."""
    return after.get("event") == "ended" and after.get("step") == start.get("step")


def _skipped(line: dict[str, Any]) -> int:
    extra = line.get("extra")
    count = _number(extra, tags.SKIPPED_STEPS) if isinstance(extra, dict) else None
    return int(count) if count is not None and math.isfinite(count) else 0


def _until_valid(lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Further lines back, up to the first with a validation."""
    for line in lines:
        yield line
        if "valid_loss" in line:
            return


def _median(lines: Sequence[dict[str, Any]], key: str) -> float | None:
    found = (_number(line, key) for line in lines)
    values = [value for value in found if value is not None and math.isfinite(value)]
    return median(values) if values else None


def _number(line: dict[str, Any], key: str) -> float | None:
    """A value of a line; None where it is not there, or is no number."""
    value = line.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None  # pruned a moment ago


def _last_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The finished lines of the file, the last first, read in chunks from its end."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        position, rest, is_last = file.seek(0, 2), b"", True
        while position > 0:
            begin = max(0, position - _CHUNK_BYTES)
            file.seek(begin)
            pieces = (file.read(position - begin) + rest).split(b"\n")
            position, rest = begin, pieces[0]
            # What follows the last newline is being written.
            finished = pieces[1:-1] if is_last else pieces[1:]
            is_last = False if len(pieces) > 1 else is_last
            for piece in reversed(finished):
                yield parse_line(path, piece)
        if rest and not is_last:
            yield parse_line(path, rest)
