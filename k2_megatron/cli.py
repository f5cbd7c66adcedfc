# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The command line. A user's mistake prints its message and exits with 2, without a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from k2_megatron.checkpoint.cli import add_checkpoint_parser, run_checkpoint
from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.config.resolve import fitting_world_sizes, resolve_world
from k2_megatron.errors import UserError
from k2_megatron.launch.ranks import RankInfo, launched_rank
from k2_megatron.launch.spawn import USER_ERROR, spawn


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(given)
    try:
        code: int = args.run(args)
        return code
    except UserError as error:
        print(f"k2-megatron: {error}", file=sys.stderr)
        return USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="k2-megatron", description="Pre-train Kimi-K2-class models on megatron-core."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="start a run, or go on with it")
    _add_config(train)
    train.add_argument(
        "--nproc",
        type=int,
        metavar="N",
        help="local ranks to start; by default one for each GPU, on a CPU as few as the layout "
        "needs. Under torchrun or srun their ranks are used instead",
    )
    train.set_defaults(run=_train)
    validate = commands.add_parser("validate", help="check a configuration, all problems at once")
    _add_config(validate)
    validate.set_defaults(run=_validate)
    # The data commands import megatron-core's datasets: only when they are asked for.
    data = commands.add_parser("data", help="prepare corpora", add_help=False)
    data.add_argument("rest", nargs=argparse.REMAINDER)
    data.set_defaults(run=_data)
    add_checkpoint_parser(commands).set_defaults(run=run_checkpoint)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file of the run")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="replace one value of the file; may be repeated",
    )


def _train(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    ranks = launched_rank()
    if ranks is None:
        num_ranks = args.nproc or _default_ranks(config)
        resolve_world(config, num_ranks)
        from k2_megatron.train.run_folder import RunFolder

        given = [args.config, *(f"--set={override}" for override in args.overrides)]
        return spawn(["train", *given], num_ranks, RunFolder.of(config).logs)
    return _train_as_rank(config, ranks)


def _train_as_rank(config: Config, ranks: RankInfo) -> int:
    from k2_megatron.platform.select import current_platform

    platform = current_platform()
    platform.prepare(ranks.local_rank)  # before the trainer imports megatron-core
    from k2_megatron.train.trainer import train

    return train(config, platform, ranks)


def _default_ranks(config: Config) -> int:
    """One rank a GPU; without GPUs the fewest that fit the layout."""
    from k2_megatron.platform.select import current_platform

    return current_platform().local_device_count() or fitting_world_sizes(config)[0]


def _validate(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    sizes = fitting_world_sizes(config)
    shown = ", ".join(str(size) for size in sizes[:8]) + (", ..." if len(sizes) > 8 else "")
    print(f"{args.config} is valid; numbers of processes that fit: {shown or 'none'}")
    return 0


def _data(args: argparse.Namespace) -> int:
    from k2_megatron.data.cli import add_data_parser, run_data

    parser = argparse.ArgumentParser(prog="k2-megatron")
    add_data_parser(parser.add_subparsers(dest="command", required=True))
    return run_data(parser.parse_args(["data", *args.rest]))
