# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The command line's `plan CONFIG`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from k2_megatron.config.config import Config
from k2_megatron.config.loader import load_config
from k2_megatron.config.phases import Phase, run_world_sizes
from k2_megatron.errors import UserError
from k2_megatron.planner.compare import compare_json, compare_text
from k2_megatron.planner.fit import fit_json, fit_text, search
from k2_megatron.planner.hardware import GPUS, GPUS_PER_NODE, Gpu
from k2_megatron.planner.job import job_of
from k2_megatron.planner.layout_table import layout_table
from k2_megatron.planner.nearest import nearest_text
from k2_megatron.planner.page import plan_page
from k2_megatron.planner.phase_peaks import PhasePeak, peaks_of_phases, peaks_text
from k2_megatron.planner.phases import phase_to_plan, phases_json, phases_section, phases_text
from k2_megatron.planner.plan import Plan, as_json
from k2_megatron.planner.schedule_picture import schedule_file
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
        type=str.upper,
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
    parser.add_argument(
        "--phase", metavar="NAME", help="plan this phase of schedule.phases; by default the first"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the plan as one page with pictures"
    )
    parser.add_argument(
        "--schedule",
        type=Path,
        metavar="FILE",
        help="also draw what every pipeline rank does when, as SVG",
    )


def run_plan(args: argparse.Namespace) -> int:
    """Run the parsed command; returns the exit code.

    Raises:
        UserError: the configuration is wrong, or a number of GPUs does not fit it.
    """
    run = load_config(args.config, args.overrides)
    phase = phase_to_plan(run, args.phase)
    config = phase.config
    if args.fit:
        return _fit(config, args)
    make_job = partial(
        job_of,
        gpu=_gpu(config, args),
        gpus_per_node=_gpus_per_node(config, args),
        imbalance=args.imbalance,
    )
    counts = args.gpus or [_of_cluster(config) or _smallest(run)]
    peaks = [peaks_of_phases(run, partial(make_job, num_gpus=count)) for count in counts]
    plans = [one[phase.index].plan() for one in peaks]
    if len(plans) > 1:
        for option, file in _files(args):
            raise UserError(f"{option} shows one number of GPUs; --gpus has several: {file}")
        if phase.name and not args.json:
            print("\n\n".join(map(peaks_text, peaks)))
            print(f"\nPlan of phase {phase.name}; --phase plans another\n")
        print(json.dumps(compare_json(plans), indent=1) if args.json else compare_text(plans))
        return 0
    _show(run, phase, plans[0], peaks[0], args)
    return 0


def _show(
    run: Config, phase: Phase, plan: Plan, peaks: Sequence[PhasePeak], args: argparse.Namespace
) -> None:
    """Print the plan for one number of GPUs and write the files that were asked for."""
    fits = peaks_text(peaks) if phase.name else ""
    pages: dict[str, Callable[[Plan], str]] = {
        "--html": partial(plan_page, phases=phases_section(run, fits)),
        "--schedule": schedule_file,
    }
    for option, file in _files(args):
        try:
            file.write_text(pages[option](plan), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{option} {file}: {error.strerror}") from None
    if args.json:
        phases = {"phase": phase.name, "phases": phases_json(run, peaks)} if phase.name else {}
        print(json.dumps({**as_json(plan), **phases}, indent=1))
        return
    if phase.name:
        print(f"{phases_text(run)}\n\n{fits}\n")
        print(f"Plan of phase {phase.name}; --phase plans another\n")
    print(plan_text(plan))
    if plan.job.degrees.pipeline > 1:
        print("\nLayers by pipeline rank, forward and backward of a micro-batch\n")
        print(layout_table(plan))
    if not plan.fits:
        print(f"\n{nearest_text(plan)}")
    for option, file in _files(args):
        print(f"\n{'page' if option == '--html' else 'schedule'}: {file}")


def _files(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """The files that were asked for, with their options."""
    both = (("--html", args.html), ("--schedule", args.schedule))
    return [(option, file) for option, file in both if file]


def _fit(config: Config, args: argparse.Namespace) -> int:
    if args.gpus is None or len(args.gpus) != 1:
        raise UserError("--fit needs one number of GPUs: --gpus N")
    for option, _ in _files(args):
        raise UserError(f"--fit has no {option}; make the page of the layout you choose")
    found = search(
        config,
        args.gpus[0],
        gpu=_gpu(config, args),
        gpus_per_node=_gpus_per_node(config, args),
        imbalance=args.imbalance,
    )
    print(json.dumps(fit_json(found), indent=1) if args.json else fit_text(found))
    return 0


def _smallest(run: Config) -> int | None:
    """The smallest number of GPUs that can run all phases; None where there is none."""
    return next(iter(run_world_sizes(run)), None)


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
