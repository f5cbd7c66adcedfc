# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The command line's `checkpoint inspect PATH`."""

import argparse
from pathlib import Path

from k2_megatron.checkpoint.inspection import inspect
from k2_megatron.errors import CheckpointError


def add_checkpoint_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> argparse.ArgumentParser:
    """Add `checkpoint` and its own commands to the program's parser, and return it."""
    parser = subparsers.add_parser("checkpoint", help="look into checkpoints")
    commands = parser.add_subparsers(dest="checkpoint_command", required=True)
    command = commands.add_parser(
        "inspect", help="print step, layout and size of a checkpoint and verify all its checksums"
    )
    command.add_argument(
        "path", type=Path, metavar="PATH", help="runs/NAME/checkpoints/step_NNNNNNNN"
    )
    return parser


def run_checkpoint(args: argparse.Namespace) -> int:
    """Run the parsed `checkpoint` command; returns the exit code.

    Raises:
        CheckpointError: the checkpoint is missing or damaged; what could be read was printed.
    """
    inspection = inspect(args.path)
    print(inspection.text)
    if inspection.problems:
        raise CheckpointError("; ".join(inspection.problems))
    print("whole: every checksum is right")
    return 0
