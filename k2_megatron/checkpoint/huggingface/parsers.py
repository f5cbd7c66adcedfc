# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The options of `checkpoint import-hf` and `checkpoint export-hf`. No torch here."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from k2_megatron.config.arguments import add_overrides

IMPORT, EXPORT = "import-hf", "export-hf"
DTYPES = ("bf16", "fp32")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB|TB)", re.IGNORECASE)
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def add_huggingface_parsers(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Add the two commands to those of `checkpoint`."""
    parser = commands.add_parser(
        IMPORT,
        help="make a released DeepSeek-V3 or Kimi K2 the checkpoint that a run starts from",
        description="Write the weights of a Hugging Face release (bf16, fp32 or block FP8) as step "
        "0 of a run; `train` goes on from it. The same command goes on after an interruption.",
    )
    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder with config.json")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="YAML file of the run")
    add_overrides(parser)
    _add_sizes(parser, "--part-size", "2GB", "a file of the checkpoint")
    parser = commands.add_parser(
        EXPORT,
        help="write a checkpoint's weights as Hugging Face has Kimi K2's",
        description="Write safetensors with an index, config.json and the tokenizer's files. The "
        "same command goes on after an interruption.",
    )
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="runs/NAME/checkpoints/step_NNNNNNNN"
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to be made")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG",
        help="YAML file of the run (default: the run folder's resolved_config.yaml)",
    )
    add_overrides(parser)
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bf16", help="of the weights (default: bf16)"
    )
    parser.add_argument(
        "--like",
        type=Path,
        metavar="RELEASE",
        help="release whose tokenizer, token ids and model type are taken over (default: what "
        "import-hf kept in the run folder)",
    )
    _add_sizes(parser, "--shard-size", "5GB", "a safetensors file")


def _add_sizes(parser: argparse.ArgumentParser, option: str, default: str, what: str) -> None:
    parser.add_argument(
        option,
        type=_size,
        default=_size(default),
        metavar="SIZE",
        help=f"of {what}, in KB, MB, GB or TB (default: {default})",
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=4,
        metavar="N",
        help="threads, each with one tensor in memory (default: 4)",
    )


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} given; a size such as 500MB or 5GB is allowed")
    size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size == 0:
        raise argparse.ArgumentTypeError(f"{text!r} given; a size above 0 is allowed")
    return size


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} given; a whole number from 1 on is allowed")
    return int(text)
