# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The command line's `launch CONFIG`: check the SLURM job of a run, then print it or submit it."""

from __future__ import annotations

import argparse
import subprocess
import sys

from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.errors import ConfigError, UserError
from k2_megatron.launch.memory import check_job, gpu_of_job
from k2_megatron.launch.slurm import Command, render
from k2_megatron.planner.hardware import GPUS
from k2_megatron.run_folder import RunFolder

_SBATCH_SECONDS = 120


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """Everything but CONFIG and --set."""
    parser.add_argument(
        "--dry-run", action="store_true", help="print the sbatch script, submit nothing"
    )
    parser.add_argument(
        "--gpu",
        type=str.upper,
        choices=sorted(GPUS),
        help="kind of the GPUs, to check that their memory suffices; by default that of "
        "cluster.gpu_type if it is one of these",
    )


def run_launch(args: argparse.Namespace) -> int:
    """Run the parsed command; returns the exit code.

    Raises:
        UserError: the configuration, the data or the run folder is wrong, the run does not fit its
            GPUs, or SLURM refuses the job.
    """
    config = load_config(args.config, args.overrides)
    command = Command(python=sys.executable, config=args.config, overrides=args.overrides)
    script = render(config, command)
    if (unchecked := check_job(config, gpu_of_job(config, args.gpu))) is not None:
        print(f"k2-megatron: {unchecked}", file=sys.stderr)
    if args.dry_run:
        sys.stdout.write(script)
        return 0
    from k2_megatron.launch.preflight import check_data, check_run_folder

    check_data(config)  # here, and not when the nodes stand idle
    folder = check_run_folder(config)
    job = _submit(config, folder, script)
    print(f"job {job} is submitted: {folder.slurm_script}")
    print(f"its log: {folder.logs / f'slurm_{job}.log'}")
    return 0


def _submit(config: Config, folder: RunFolder, script: str) -> str:
    """Hand the script to sbatch; the job's number.

    Raises:
        ConfigError: the script cannot be written.
        UserError: SLURM is not here, or refuses the job.
    """
    path = folder.slurm_script
    try:
        path.write_text(script, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"run.folder {config.run.folder}: {path} cannot be written: {error.strerror}"
        ) from error
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(path)],
            capture_output=True,
            text=True,
            timeout=_SBATCH_SECONDS,
        )
    except FileNotFoundError as error:
        raise UserError(
            "sbatch is not found: launch submits from a machine that has SLURM's commands; "
            "--dry-run prints the script to take there"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"sbatch gave no answer in {_SBATCH_SECONDS} seconds") from error
    if done.returncode:
        raise UserError(f"SLURM refuses {path}: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]
