# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The command line. A user's mistake prints its message and exits with 2, without a traceback."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version

from k2_megatron.checkpoint.cli import add_checkpoint_parser, run_checkpoint
from k2_megatron.config.arguments import add_overrides
from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.config.phases import check_world_size, phases_of, run_world_sizes
from k2_megatron.errors import TopologyError, TrainingStoppedError, UserError
from k2_megatron.launch.ranks import RankInfo, check_local_ranks, launched_rank
from k2_megatron.launch.signals import PARENT_PIPE, StopSignals, stop_with_parent
from k2_megatron.launch.spawn import FAILED, USER_ERROR, spawn
from k2_megatron.launch.submit import add_launch_options, run_launch
from k2_megatron.planner.cli import add_plan_options, run_plan
from k2_megatron.planner.parameters import count_parameters
from k2_megatron.planner.phases import phases_text
from k2_megatron.train.events import EventLog
from k2_megatron.train.status_text import add_status_parser, run_status

BY_KEYBOARD = 130
# What a shell says of a command whose reader has gone, as with `| head -1`: 128 + SIGPIPE.
OUTPUT_CLOSED = 141
# What it prints is not what these are called for: they go on, or fail, as any program does.
_ACT = ("train", "data", "launch", "import-hf", "export-hf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser(with_data=given[:1] == ["data"]).parse_args(given)
    try:
        code = _run(args)
        if not _acts(args):
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        if _acts(args):
            raise
        # Else the interpreter would flush into the closed pipe once more, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUTPUT_CLOSED


def _run(args: argparse.Namespace) -> int:
    """Run the parsed command; returns the exit code, also of what a user can cause."""
    try:
        code: int = args.run(args)
        return code
    except UserError as error:
        print(f"k2-megatron: {error}", file=sys.stderr)
        return USER_ERROR
    except TrainingStoppedError as error:
        print(f"k2-megatron: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("k2-megatron: interrupted", file=sys.stderr)
        return BY_KEYBOARD


def _acts(args: argparse.Namespace) -> bool:
    """Whether the command does more than print."""
    command = getattr(args, "checkpoint_command", args.command)
    return command in _ACT and not getattr(args, "dry_run", False)


def _parser(*, with_data: bool) -> argparse.ArgumentParser:
    """The parser of all commands; that of `data` is complete only if it is asked for."""
    parser = argparse.ArgumentParser(
        prog="k2-megatron", description="Pre-train Kimi-K2-class models on megatron-core."
    )
    parser.add_argument(
        "--version", action="version", version=f"k2-megatron {version('k2-megatron')}"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train",
        help="start a run, or go on with it",
        description="Train as CONFIG says, from the newest checkpoint of the run if there is one. "
        "Exit codes: 0 done, 2 a mistake in what was given, 3 stopped by SIGINT, SIGTERM or "
        "SIGUSR1 with a checkpoint saved, so that the same command goes on.",
    )
    _add_config(train)
    train.add_argument(
        "--nproc",
        type=_process_count,
        metavar="N",
        help="local ranks to start; by default as many as fit on the GPUs, on a CPU as few as the "
        "layout needs. Not under torchrun or srun, which start the ranks themselves",
    )
    train.set_defaults(run=_train)
    validate = commands.add_parser(
        "validate",
        help="check a configuration, all problems at once",
        description="Check CONFIG without training; tells every problem at once.",
    )
    _add_config(validate)
    validate.set_defaults(run=_validate)
    plan = commands.add_parser(
        "plan",
        help="memory, layout, communication and time of a run, without a GPU",
        description="Tell what CONFIG needs on GPUs that need not be there: memory by pipeline "
        "rank, bytes sent, placement of the optimizer's work, an estimate of the time of a step.",
    )
    _add_config(plan)
    add_plan_options(plan)
    plan.set_defaults(run=run_plan)
    status = commands.add_parser(
        "status",
        help="where a run stands",
        description="Print where RUN stands: progress, losses, speed, last checkpoint, faults. "
        "Reads files only, also while the run writes them.",
    )
    add_status_parser(status)
    status.set_defaults(run=run_status)
    launch = commands.add_parser(
        "launch",
        help="submit a run to SLURM, or print its sbatch script",
        description="Submit the run of CONFIG as the SLURM job that its section `cluster` "
        "describes. It requeues itself after a time limit or preemption and goes on.",
    )
    _add_config(launch)
    add_launch_options(launch)
    launch.set_defaults(run=run_launch)
    if with_data:
        # Imports numpy and the tokenizers' modules, which nothing else here needs.
        from k2_megatron.data.cli import add_data_parser, run_data

        add_data_parser(commands)
        commands.choices["data"].set_defaults(run=run_data)
    else:
        commands.add_parser("data", help="prepare training data")
    add_checkpoint_parser(commands).set_defaults(run=run_checkpoint)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    add_overrides(parser)


def _process_count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: an integer >= 1")
    return int(text)


def _train(args: argparse.Namespace) -> int:
    ranks = launched_rank()
    if ranks is None:
        return _train_here(args)
    # As early as possible: from here on a signal is a wish to stop, not an end.
    stop_signals = StopSignals()
    stop_with_parent()
    with suppress(AttributeError, OSError, ValueError, RuntimeError):  # no stderr to write to
        faulthandler.enable()  # a crash of C code leaves the stacks of all threads in the log
    try:
        return _train_as_rank(args, ranks, stop_signals)
    except UserError as error:
        if ranks.rank == 0 or PARENT_PIPE in os.environ:  # our ranks have a log each
            raise
        # What is wrong is wrong for all ranks of a node at least: one of them tells.
        if ranks.local_rank == 0:
            print(f"k2-megatron: rank {ranks.rank}: {error}", file=sys.stderr)
        return USER_ERROR
    except TrainingStoppedError:
        if ranks.rank == 0 or PARENT_PIPE in os.environ:
            raise
        return FAILED  # rank 0 tells what all ranks have agreed on


def _train_here(args: argparse.Namespace) -> int:
    """Check all that can be checked, then start the ranks on this machine and wait for them."""
    config = load_config(args.config, args.overrides)
    if args.nproc is not None:
        check_world_size(config, args.nproc)
    from k2_megatron.launch.preflight import check_data, check_run_folder, is_at_handover

    check_data(config)
    from k2_megatron.platform.select import current_platform

    platform = current_platform()
    for phase in phases_of(config):
        platform.check(phase.config)
    devices = platform.local_device_count()
    num_ranks = args.nproc or _default_ranks(config, devices)
    check_local_ranks(num_ranks, devices)
    check_world_size(config, num_ranks)
    given = [args.config, *(f"--set={override}" for override in args.overrides)]
    command = [sys.executable, "-m", "k2_megatron", "train", *given]
    folder = check_run_folder(config)
    events = EventLog(folder.path, writes=True)
    return spawn(
        command,
        num_ranks,
        folder.logs,
        again=lambda: is_at_handover(config, folder),
        failed=lambda text: events.write("rank_failed", reason=text),
    )


def _default_ranks(config: Config, devices: int | None) -> int:
    """As many ranks as fit on the GPUs; without GPUs as few as the layout needs."""
    fitting = run_world_sizes(config)
    if devices is None:
        return min(fitting, default=1)
    # Where none fits the number is refused, with those that would.
    return max((size for size in fitting if size <= devices), default=devices)


def _train_as_rank(args: argparse.Namespace, ranks: RankInfo, stop_signals: StopSignals) -> int:
    """Be one rank of a run that torchrun, srun or `_train_here` started."""
    if args.nproc is not None:
        raise TopologyError(
            f"--nproc {args.nproc}: a launcher has started {ranks.world_size} processes already "
            "(RANK or SLURM_PROCID is set); leave --nproc out"
        )
    config = load_config(args.config, args.overrides)
    from k2_megatron.platform.select import current_platform

    platform = current_platform()
    device_index = ranks.device_index(platform.local_device_count())
    platform.prepare(device_index)  # before the trainer imports megatron-core
    from k2_megatron.train.trainer import train

    return train(config, platform, ranks, stop_signals)


def _validate(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    sizes = run_world_sizes(config)
    shown = ", ".join(str(size) for size in sizes[:8]) + (", ..." if len(sizes) > 8 else "")
    counts = count_parameters(config.model)
    print(f"{args.config} is valid")
    print(f"parameters: {counts.total:,}, active in a token {counts.active:,}")
    print(f"numbers of processes that fit: {shown or 'none'}")
    if phases := phases_text(config):
        print(f"\n{phases}")
    return 0
