# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`k2-megatron status`: a run's state as a page for people, or as JSON."""

from __future__ import annotations

import argparse
import json

from k2_megatron.train.progress import format_count, format_duration
from k2_megatron.train.status import Status, find_run, status_of


def add_status_parser(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, or its name in runs/")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_status(args: argparse.Namespace) -> int:
    """Print where a run stands.

    Raises:
        UserError: there is no such run, or its files are damaged.
    """
    status = status_of(find_run(args.run_folder))
    print(json.dumps(status.to_json(), indent=2) if args.json else status_text(status))
    return 0


def status_text(status: Status) -> str:
    """A line each for process, progress, losses, speed, checkpoint and faults."""
    rows = [
        ("run", status.run),
        ("process", _process(status)),
        ("progress", _progress(status)),
        ("loss", _losses(status)),
        ("speed", _speed(status)),
        ("checkpoint", _checkpoint(status)),
        ("faults", _faults(status)),
    ]
    return "\n".join(f"{name:<11}{text}" for name, text in rows)


def _process(status: Status) -> str:
    job = f", SLURM job {status.slurm_job}" if status.slurm_job else ""
    ranks = f", {status.world_size} ranks" if status.world_size else ""
    if status.submitted:
        return "not started yet: `launch` has made its job"
    if status.alive:
        return f"training: {status.holder}{ranks}{job}"
    if status.alive is None:
        return f"not to be seen from this machine: {status.holder}{ranks}{job}"
    return f"none is training; {status.ended or 'the last one ended without a word'}{job}"


def _progress(status: Status) -> str:
    of = f" of {status.last_step}" if status.last_step is not None else ""
    text = f"step {status.step}{of}, {format_count(status.consumed_tokens)} tokens"
    if status.line_age_seconds is not None:
        text += f", written {format_duration(status.line_age_seconds)} ago"
    return text


def _losses(status: Status) -> str:
    if status.loss is None:
        return "no step is logged yet"
    text = f"{status.loss:.4f}"
    if status.grad_norm is not None:
        text += f", gradient norm {status.grad_norm:.3f}"
    if status.valid_loss is not None:
        text += f"; validation {status.valid_loss:.4f} after step {status.valid_step}"
    return text


def _speed(status: Status) -> str:
    if status.tokens_per_second is None or status.step_seconds is None:
        return "-"
    text = f"{format_count(status.tokens_per_second)} tokens/s, "
    if status.tflops_per_device is not None:
        text += f"{status.tflops_per_device:.3f} TFLOP/s/device, "
    text += f"{status.step_seconds:.3g} s a step"
    if status.eta_seconds:
        text += f"; {format_duration(status.eta_seconds)} left in steps alone"
    return text


def _checkpoint(status: Status) -> str:
    if status.checkpoint is None or status.checkpoint_age_seconds is None:
        text = "none is complete yet"
    else:
        age = format_duration(status.checkpoint_age_seconds)
        text = f"{status.checkpoint}, complete, {age} old"
    if status.saving:
        doing = "being written" if status.alive else "unfinished"
        text += f"; {doing}: {', '.join(status.saving)}"
    return text


def _faults(status: Status) -> str:
    counts = (
        (status.restarts, "restart"),
        (status.skipped_steps, "skipped step"),
        (status.rollbacks, "rollback"),
        (status.failed_saves, "failed save"),
    )
    return ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts)
