# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The command line's `checkpoint inspect`, `import-hf` and `export-hf`."""

import argparse
from pathlib import Path

from k2_megatron.checkpoint.huggingface.parsers import add_huggingface_parsers
from k2_megatron.checkpoint.inspection import inspect
from k2_megatron.errors import CheckpointError


def add_checkpoint_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> argparse.ArgumentParser:
    """Add `checkpoint` and its own commands to the program's parser, and return it."""
    parser = subparsers.add_parser(
        "checkpoint", help="look into checkpoints, import and export weights"
    )
    commands = parser.add_subparsers(dest="checkpoint_command", required=True)
    command = commands.add_parser(
        "inspect", help="print step, layout and size of a checkpoint and verify all its checksums"
    )
    command.add_argument(
        "path", type=Path, metavar="PATH", help="runs/NAME/checkpoints/step_NNNNNNNN"
    )
    add_huggingface_parsers(commands)
    return parser


def run_checkpoint(args: argparse.Namespace) -> int:
    """Run the parsed `checkpoint` command; returns the exit code.

    Raises:
        CheckpointError: the checkpoint is missing or damaged; what could be read was printed.
        UserError: an import or export was given something wrong.
    """
    if args.checkpoint_command != "inspect":
        # Imports torch, which looking into a checkpoint does not need.
        from k2_megatron.checkpoint.huggingface.commands import run_huggingface

        return run_huggingface(args)
    inspection = inspect(args.path)
    print(inspection.text)
    if inspection.problems:
        raise CheckpointError("; ".join(inspection.problems))
    print("whole: every checksum is right")
    return 0
