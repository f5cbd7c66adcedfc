# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The command line's `plan CONFIG`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.errors import UserError
from k2_megatron.planner.compare import compare_json, compare_text
from k2_megatron.planner.fit import fit_json, fit_text, search
from k2_megatron.planner.hardware import GPUS, GPUS_PER_NODE, Gpu
from k2_megatron.planner.job import job_of
from k2_megatron.planner.page import plan_page
from k2_megatron.planner.plan import as_json, make_plan
from k2_megatron.planner.text import plan_text


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Everything but CONFIG and --set."""
    parser.add_argument(
        "--gpus",
        type=_counts,
        metavar="N[,N...]",
        help="number of GPUs; several are compared. By default those of cluster.nodes, else the "
        "smallest number that fits the layout",
    )
    parser.add_argument(
        "--gpu",
        choices=sorted(GPUS),
        help="their kind; by default that of cluster.gpu_type if it is one of these, else H100",
    )
    parser.add_argument(
        "--gpus-per-node",
        type=_count,
        metavar="N",
        help=f"GPUs of a node; by default cluster.gpus_per_node, {GPUS_PER_NODE} if not given",
    )
    parser.add_argument(
        "--imbalance",
        type=_factor,
        default=1.0,
        metavar="F",
        help="plan for an expert-parallel rank that gets F times its share of tokens (1)",
    )
    parser.add_argument(
        "--fit",
        action="store_true",
        help="search layouts and memory presets that fit on --gpus, the fastest by estimate first",
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the plan as one page with pictures"
    )


def run_plan(args: argparse.Namespace) -> int:
    """Run the parsed command; returns the exit code.

    Raises:
        UserError: the configuration is wrong, or a number of GPUs does not fit it.
    """
    config = load_config(args.config, args.overrides)
    if args.fit:
        return _fit(config, args)
    jobs = [
        job_of(
            config,
            count,
            gpu=_gpu(config, args),
            gpus_per_node=_gpus_per_node(config, args),
            imbalance=args.imbalance,
        )
        for count in args.gpus or [_of_cluster(config)]
    ]
    if len(jobs) > 1:
        if args.html:
            raise UserError("--html shows one number of GPUs; --gpus has several")
        plans = [make_plan(job) for job in jobs]
        print(json.dumps(compare_json(plans), indent=1) if args.json else compare_text(plans))
        return 0
    plan = make_plan(jobs[0])
    if args.html:
        try:
            args.html.write_text(plan_page(plan), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--html {args.html}: {error.strerror}") from None
    print(json.dumps(as_json(plan), indent=1) if args.json else plan_text(plan))
    if args.html and not args.json:
        print(f"\npage: {args.html}")
    return 0


def _fit(config: Config, args: argparse.Namespace) -> int:
    if args.gpus is None or len(args.gpus) != 1:
        raise UserError("--fit needs one number of GPUs: --gpus N")
    if args.html:
        raise UserError("--fit has no --html; make the page of the layout you choose")
    found = search(
        config,
        args.gpus[0],
        gpu=_gpu(config, args),
        gpus_per_node=_gpus_per_node(config, args),
        imbalance=args.imbalance,
    )
    print(json.dumps(fit_json(found), indent=1) if args.json else fit_text(found))
    return 0


def _of_cluster(config: Config) -> int | None:
    """GPUs of the job that `launch` would make; None without one."""
    return (config.cluster.nodes or 0) * config.cluster.gpus_per_node or None


def _gpu(config: Config, args: argparse.Namespace) -> Gpu:
    return GPUS[args.gpu or _name_of(config.cluster.gpu_type)]


def _name_of(gpu_type: str | None) -> str:
    name = (gpu_type or "").upper()
    return name if name in GPUS else "H100"


def _gpus_per_node(config: Config, args: argparse.Namespace) -> int:
    return args.gpus_per_node or config.cluster.gpus_per_node or GPUS_PER_NODE


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: an integer >= 1")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1.0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: a number >= 1")
    return value
