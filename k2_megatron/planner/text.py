# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A plan as tables of at most 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from k2_megatron.memory.policy import PRESETS
from k2_megatron.planner.hardware import ESTIMATE_ERROR, GIB, OUTSIDE_ALLOCATOR_BYTES
from k2_megatron.planner.job import Job
from k2_megatron.planner.parameters import count_parameters
from k2_megatron.planner.plan import Plan, RankPlan
from k2_megatron.planner.policy_table import policy_rows
from k2_megatron.planner.update_rules import rules_table


def gib(size: float) -> str:
    """Bytes as GiB with a digit or two behind the point."""
    value = size / GIB
    return f"{value:.2f}" if abs(value) < 9.995 else f"{value:.1f}"


def scaled(value: float, unit: str) -> str:
    """A number with three digits and a decimal prefix: 4.85e16 FLOP is 48.5 PFLOP."""
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            shown = value / factor
            digits = 0 if shown >= 99.95 else 1 if shown >= 9.995 else 2
            return f"{shown:.{digits}f} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def table(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns under each other: the first `left` ones to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def plan_text(plan: Plan) -> str:
    """The whole plan."""
    parts = [
        head_text(plan),
        "Device memory, GiB by pipeline rank (the fullest data-parallel rank of each)",
        memory_table(plan),
        verdict(plan),
        f"Activations of pipeline rank {fullest(plan).pipeline_rank}, GiB",
        activation_table(plan),
        "Memory policy (docs/memory.md)",
        policy_table(plan.job),
    ]
    if plan.traffic:
        parts += ["Sent by each GPU in a step", traffic_table(plan)]
    if plan.muon:
        parts += ["Newton-Schulz", muon_text(plan), "Update rules", rules_table(plan.job.config)]
    elif plan.job.config.optimizer.type == "adamw":
        parts += ["Update rule: AdamW for all parameters"]
    parts += ["Time of a step", estimate_text(plan)]
    return "\n\n".join(parts)


def head_text(plan: Plan) -> str:
    """What is planned, in a few lines."""
    job, degrees = plan.job, plan.job.degrees
    schedule, counts = job.config.schedule, count_parameters(job.config.model)
    kind = f"{degrees.virtual} chunks interleaved" if degrees.virtual > 1 else "1F1B"
    tokens = schedule.global_batch_size * schedule.seq_length
    unique = counts.total * (job.width + 4) / 1e12
    return "\n".join(
        [
            f"{job.config.run.name}: {job.config.model.preset}, {counts.total:,} parameters, "
            f"{counts.active:,} active in a token",
            f"{job.num_gpus} x {job.gpu.name}, {min(job.gpus_per_node, job.num_gpus)} a node: "
            f"TP {degrees.tensor}, CP {degrees.context}, PP {degrees.pipeline} ({kind}), "
            f"EP {degrees.expert}, ETP {degrees.expert_tensor}, DP {degrees.data}, "
            f"EDP {degrees.expert_data}",
            f"{tokens:,} tokens a step: {job.sizes.num_microbatches} micro-batches of "
            f"{schedule.micro_batch_size} x {schedule.seq_length} a pipeline, "
            f"memory.preset {_preset_name(plan)}",
            f"routers: the fullest expert-parallel rank gets {job.imbalance:g} times its share",
            f"one copy of parameters and gradients: {unique:.3g} TB",
        ]
    )


def memory_table(plan: Plan) -> str:
    """Rows for the pipeline ranks; neighbours that are alike make one."""
    rows = [
        (
            "rank",
            "layers",
            "params",
            "weights",
            "grads",
            "optim",
            "activ",
            "flying",
            "work",
            "peak",
            "free",
        )
    ]
    for first, last, rank in _runs(plan.ranks):
        number = str(first) if first == last else f"{first}-{last}"
        rows.append(
            (
                number,
                _shortened(rank.layers, 25) if first == last else f"{_count(rank)} each",
                f"{rank.states.parameters / 1e9:.3f}B",
                gib(rank.states.parameter_bytes),
                gib(rank.states.gradient_bytes),
                gib(rank.optimizer_bytes),
                gib(rank.held_bytes),
                "+".join(map(str, rank.in_flight)),
                gib(rank.workspace_bytes),
                gib(rank.total_bytes) + ("*" if rank.optimizer_is_peak else " "),
                gib(plan.usable_bytes - rank.total_bytes),
            )
        )
    text = table(rows, left=2)
    if any(rank.optimizer_is_peak for rank in plan.ranks):
        text += "\n* in the optimizer's step, when activations are gone"
    return text


def verdict(plan: Plan) -> str:
    """Whether it fits, and how far the router may go."""
    peak, usable = gib(plan.peak_bytes), gib(plan.usable_bytes)
    reserve = gib(OUTSIDE_ALLOCATOR_BYTES)
    rank = fullest(plan).pipeline_rank
    if plan.fits:
        text = (
            f"fits: {peak} of {usable} GiB on pipeline rank {rank}, {gib(plan.headroom_bytes)} "
            f"free ({reserve} more are for CUDA and NCCL)"
        )
    else:
        text = (
            f"DOES NOT FIT: {peak} GiB on pipeline rank {rank}, {usable} usable "
            f"({reserve} of the {plan.job.gpu.name} are for CUDA and NCCL)"
        )
    if plan.full_at is not None:
        text += f"\nfull when one expert-parallel rank gets {plan.full_at:.2f} times its share"
    elif plan.fits and plan.job.degrees.expert > 1:
        text += "\nfits even if all tokens go to one expert-parallel rank"
    if plan.host_bytes_per_node:
        text += f"\npinned host memory: {gib(plan.host_bytes_per_node)} GiB a node"
    return text


def activation_table(plan: Plan) -> str:
    """Tensors of the fullest rank, the largest first."""
    rank = fullest(plan)
    total = rank.held_bytes or 1.0
    rows = [("tensor", "GiB", "share")]
    rows += [
        (name, gib(size), f"{100 * size / total:.1f} %")
        for name, size in sorted(rank.activations.items(), key=lambda item: -item[1])
    ]
    return table(rows)


def policy_table(job: Job) -> str:
    """Every activation with its policy and bytes."""
    return table(policy_rows(job), left=3)


def traffic_table(plan: Plan) -> str:
    """Messages by group."""
    rows = [("group", "purpose", "ranks", "sent", "in node", "hidden")]
    rows += [
        (
            one.group,
            one.purpose,
            str(one.size),
            scaled(one.sent_bytes, "B"),
            f"{100 * one.node_part:.0f} %",
            "yes" if one.overlapped else "no",
        )
        for one in plan.traffic
    ]
    return table(rows, left=2)


def muon_text(plan: Plan) -> str:
    """The stage with the longest queue, and the whole."""
    longest = max(plan.muon, key=lambda one: one.longest)
    total = sum(one.flops for one in plan.muon)
    sent = sum(one.wire_bytes for one in plan.muon)
    tokens = plan.estimate.tokens
    return (
        f"{sum(one.num_matrices for one in plan.muon):,} matrices, {scaled(total, 'FLOP')} a step, "
        f"{100 * total / (tokens * plan.estimate.flops_per_token):.2f} % of the model's\n"
        f"longest queue: {scaled(longest.longest, 'FLOP')} on stage {longest.pipeline_rank}, "
        f"{longest.balance:.2f} of the stage's mean\n"
        f"gathered for it: {sum(one.cut_matrices for one in plan.muon):,} matrices, "
        f"{scaled(sent, 'B')} over all GPUs"
    )


def estimate_text(plan: Plan) -> str:
    """Estimates with their error and the formula's name."""
    found = plan.estimate
    rows = [
        ("computation of the slowest pipeline rank", f"{found.compute_seconds:.3g} s"),
        (f"pipeline bubble ({100 * found.bubble:.1f} %)", f"{found.bubble_seconds:.3g} s"),
        ("gradients, weights, matrices", f"{found.data_seconds:.3g} s"),
        ("optimizer", f"{found.optimizer_seconds:.3g} s"),
        ("step", f"{found.step_seconds:.3g} s"),
        ("tokens/s/GPU", f"{found.tokens_per_gpu:.0f}"),
        ("model TFLOP/s/GPU", f"{found.flops_per_gpu / 1e12:.0f}"),
    ]
    note = (
        f"An estimate, good to some {100 * ESTIMATE_ERROR:.0f} %.\n"
        f"Rates of the {plan.job.gpu.name}: {plan.job.gpu.source}.\n"
        f"Model FLOPs of a token: {found.flops_per_token:.4g} = 6 x weights it is multiplied with "
        "+ 3 x layers\n  x sequence x heads x (key + value size); no recomputation."
    )
    return f"{table(rows)}\n{note}"


def fullest(plan: Plan) -> RankPlan:
    """The pipeline rank with the highest peak."""
    return max(plan.ranks, key=lambda rank: rank.total_bytes)


def _preset_name(plan: Plan) -> str:
    for name, policies in PRESETS.items():
        if policies == plan.job.policies:
            return name + (" with changes" if plan.job.by_layer else "")
    return "custom"


def _runs(ranks: Sequence[RankPlan]) -> list[tuple[int, int, RankPlan]]:
    """(first, last, rank) of neighbours that differ in nothing but the numbers of their layers."""
    found: list[tuple[int, int, RankPlan]] = []
    for rank in ranks:
        if found and _numbers(found[-1][2]) == _numbers(rank):
            found[-1] = (found[-1][0], rank.pipeline_rank, rank)
        else:
            found.append((rank.pipeline_rank, rank.pipeline_rank, rank))
    return found


def _numbers(rank: RankPlan) -> object:
    return rank.states, rank.in_flight, round(rank.total_bytes)


def _count(rank: RankPlan) -> str:
    return f"{rank.layers.count('|') + 1} chunks"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
