# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`k2-megatron data prepare`: its arguments and what it prints."""

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from k2_megatron.data.corpora import Corpus, open_corpus
from k2_megatron.data.metadata import output_path
from k2_megatron.data.prepare import prepare
from k2_megatron.data.progress import ProgressDisplay
from k2_megatron.data.readers import DEFAULT_SUFFIXES, find_files
from k2_megatron.data.stdlib_corpus import prepare_stdlib
from k2_megatron.data.tokenizer import TOKENIZER_TYPES, Tokenizer, build_tokenizer
from k2_megatron.data.writer import SUFFIXES
from k2_megatron.errors import DataError

_MAX_DEFAULT_WORKERS = 8


def add_data_parser(subparsers: Any) -> None:
    """Add the command `data` to what `ArgumentParser.add_subparsers` returned."""
    data = subparsers.add_parser("data", help="prepare training data")
    commands = data.add_subparsers(dest="data_command", required=True)
    parser = commands.add_parser(
        "prepare",
        help="tokenise text and JSONL files into a corpus",
        description="Tokenise text files (one document each), JSONL files (one document a line),"
        " each also with .gz, and folders of them, into PREFIX.bin, PREFIX.idx and PREFIX.json.",
    )
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="files and folders")
    parser.add_argument(
        "--python-stdlib",
        action="store_true",
        help="instead of INPUT: the source of this Python's standard library",
    )
    parser.add_argument("--output", required=True, metavar="PREFIX", help="where to write")
    parser.add_argument("--tokenizer", choices=TOKENIZER_TYPES, default="byte", help="default byte")
    parser.add_argument("--tokenizer-path", metavar="FILE", help="tokenizer.json or tiktoken file")
    parser.add_argument(
        "--eod",
        metavar="TOKEN",
        help="what ends a document: a token's text, or for tiktoken its id",
    )
    parser.add_argument(
        "--num-special-tokens", type=int, metavar="N", help="tiktoken: ids after the ranks"
    )
    parser.add_argument(
        "--pattern", metavar="REGEX", help="tiktoken: how text is split before merging"
    )
    parser.add_argument("--json-key", metavar="KEY", help="JSONL: key of the text, default text")
    parser.add_argument(
        "--suffix",
        action="append",
        metavar=".EXT",
        help=f"files taken from folders, may be repeated, default {' '.join(DEFAULT_SUFFIXES)}",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, _MAX_DEFAULT_WORKERS),
        metavar="N",
        help="processes that tokenise, default %(default)s; the output does not depend on it",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace an existing output")
    existing.add_argument(
        "--if-missing", action="store_true", help="do nothing where a whole output exists"
    )


def run_data(args: argparse.Namespace) -> int:
    """Run the command and print what came out; returns the exit code 0.

    Raises:
        UserError: Anything wrong with arguments, inputs or output.
    """
    assert args.data_command == "prepare"
    _check_arguments(args)
    tokenizer = build_tokenizer(
        args.tokenizer,
        args.tokenizer_path,
        eod=args.eod,
        num_special_tokens=args.num_special_tokens,
        split_pattern=args.pattern,
    )
    if args.if_missing and any(output_path(args.output, suffix).exists() for suffix in SUFFIXES):
        _print_summary(_existing_corpus(args.output, tokenizer), "exist already")
        return 0
    with _stopped_by_sigterm(), ProgressDisplay(sys.stderr) as progress:
        if args.python_stdlib:
            corpus = prepare_stdlib(
                args.output,
                tokenizer,
                workers=args.workers,
                overwrite=args.overwrite,
                progress=progress,
            )
        else:
            corpus = prepare(
                args.inputs,
                args.output,
                tokenizer,
                workers=args.workers,
                json_key=args.json_key or "text",
                suffixes=args.suffix or DEFAULT_SUFFIXES,
                overwrite=args.overwrite,
                progress=progress,
            )
    _print_summary(corpus, "written")
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuse what contradicts itself or would have no effect."""
    if bool(args.inputs) == args.python_stdlib:
        raise DataError("give either INPUT files and folders, or --python-stdlib")
    if args.suffix and not any(os.path.isdir(given) for given in args.inputs):
        raise DataError("--suffix has no effect: no INPUT is a folder")
    if args.json_key is not None:
        files = find_files(args.inputs, args.suffix or DEFAULT_SUFFIXES)
        if not any(file.is_jsonl for file in files):
            raise DataError(f"--json-key {args.json_key} has no effect: no INPUT is a JSONL file")


def _existing_corpus(prefix: str, tokenizer: Tokenizer) -> Corpus:
    """Return the whole corpus that exists, made with this tokenizer, or raise DataError."""
    try:
        corpus = open_corpus(prefix)
    except DataError as error:
        raise DataError(
            f"--if-missing: {prefix} exists, but not whole ({error}); --overwrite replaces it"
        ) from error
    made_with = corpus.metadata.tokenizer
    if made_with.fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"--if-missing: {prefix} exists, but made with tokenizer {made_with.name}"
            f" ({made_with.fingerprint[:12]}), and {tokenizer.name}"
            f" ({tokenizer.fingerprint[:12]}) is asked for; --overwrite replaces it"
        )
    return corpus


def _print_summary(corpus: Corpus, verb: str) -> None:
    metadata = corpus.metadata
    print(f"{corpus.prefix}.bin, .idx, .json {verb}")
    left_out = f"{metadata.num_empty_documents:,} empty"
    if metadata.num_undecodable_documents:
        left_out += f" and {metadata.num_undecodable_documents:,} not UTF-8"
    print(f"documents {metadata.num_documents:,} ({left_out} left out)")
    print(f"tokens    {metadata.num_tokens:,} ({metadata.tokenizer.name})")
    print(f"bytes     {metadata.bin_bytes:,} ({metadata.dtype})")


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, with the unfinished files removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
