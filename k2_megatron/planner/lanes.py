# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""One slot of the steady state on one GPU: what computes while what travels, by the engine's order.

The order is that of `models/common/model_chunk_schedule_plan.py:217-260`: one stream computes, one
communicates, each in its own order, each piece after those it needs.
"""

from __future__ import annotations

from dataclasses import dataclass

from k2_megatron.parallel.layout import Stage
from k2_megatron.planner.job import Job
from k2_megatron.planner.stage_times import StageTimes, stage_times

COMPUTE, COMMUNICATION, COPIES = "computes", "communicates", "copies"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of the slot.

    Attributes:
        lane: COMPUTE, COMMUNICATION or COPIES.
        kind: "forward", "backward", "weight gradient", "all-to-all", "pipeline" or "offload".
        begin, end: seconds from the beginning of the slot.
    """

    name: str
    lane: str
    kind: str
    begin: float
    end: float


@dataclass(frozen=True)
class _Step:
    name: str
    lane: str
    kind: str
    seconds: float
    after: tuple[str, ...] = ()


def slot(job: Job) -> list[Piece]:
    """Forward of one micro-batch and backward of another through one layer, a routed one if any.

    The last weight gradient of a chunk runs beside its pipeline transfers: the slot is drawn for a
    chunk of one layer.
    """
    shape = job.shape
    layer = min(shape.num_dense_layers, shape.num_layers - 1)
    times = stage_times(job, Stage(layers=(layer,)))
    parallel = job.config.parallel
    if parallel.overlap_moe_expert_parallel_comm:
        steps = _overlapped(times, delayed=parallel.delay_wgrad_compute)
    else:
        steps = _serial(times)
    pieces = _run([step for step in steps if step.seconds > 0])
    if times.offload:
        end = max(piece.end for piece in pieces)
        for name, begin in (("offload F-1", 0.0), ("onload B+1", end / 2)):
            end_of = begin + times.offload
            pieces.append(Piece(name=name, lane=COPIES, kind="offload", begin=begin, end=end_of))
    return pieces


def exposed_seconds(pieces: list[Piece]) -> float:
    """Seconds of the slot in which nothing computes."""
    computing = sum(piece.end - piece.begin for piece in pieces if piece.lane == COMPUTE)
    return max(piece.end for piece in pieces if piece.lane != COPIES) - computing


def _parts(times: StageTimes) -> dict[str, float]:
    """Seconds of attention and feed-forward, in each direction, weight gradients apart."""
    share = times.attention / times.forward_compute
    return {
        "Attn(F)": times.attention,
        "MLP(F)": times.forward_compute - times.attention,
        "Attn(B)": times.activation_gradient * share,
        "MLP(B)": times.activation_gradient * (1 - share),
        "Attn(W)": times.weight_gradient * share,
        "MLP(W)": times.weight_gradient * (1 - share),
    }


def _overlapped(times: StageTimes, *, delayed: bool) -> list[_Step]:
    parts, once = _parts(times), times.all_to_all / 2
    if not delayed:
        for name in ("Attn", "MLP"):
            parts[f"{name}(B)"] += parts.pop(f"{name}(W)")
            parts[f"{name}(W)"] = 0.0

    def computes(name: str, kind: str, *after: str) -> _Step:
        return _Step(name, COMPUTE, kind, parts[name], after)

    def travels(name: str, kind: str, seconds: float, *after: str) -> _Step:
        return _Step(name, COMMUNICATION, kind, seconds, after)

    return [
        travels("EP-C(B)", "all-to-all", once),
        computes("Attn(F)", "forward"),
        computes("MLP(B)", "backward", "EP-C(B)"),
        travels("EP-D(F)", "all-to-all", once, "Attn(F)"),
        computes("MLP(W)", "weight gradient"),
        travels("EP-D(B)", "all-to-all", once, "MLP(B)"),
        computes("MLP(F)", "forward", "EP-D(F)"),
        travels("EP-C(F)", "all-to-all", once, "MLP(F)"),
        computes("Attn(B)", "backward", "EP-D(B)"),
        travels("PP", "pipeline", times.send, "Attn(B)"),
        computes("Attn(W)", "weight gradient"),
    ]


def _serial(times: StageTimes) -> list[_Step]:
    """Without overlap every piece waits for the one before it."""
    parts, once = _parts(times), times.all_to_all / 2
    order = [
        ("Attn(F)", COMPUTE, "forward", parts["Attn(F)"]),
        ("EP-D(F)", COMMUNICATION, "all-to-all", once),
        ("MLP(F)", COMPUTE, "forward", parts["MLP(F)"]),
        ("EP-C(F)", COMMUNICATION, "all-to-all", once),
        ("PP(F)", COMMUNICATION, "pipeline", times.send),
        ("EP-C(B)", COMMUNICATION, "all-to-all", once),
        ("MLP(B)", COMPUTE, "backward", parts["MLP(B)"] + parts["MLP(W)"]),
        ("EP-D(B)", COMMUNICATION, "all-to-all", once),
        ("Attn(B)", COMPUTE, "backward", parts["Attn(B)"] + parts["Attn(W)"]),
        ("PP(B)", COMMUNICATION, "pipeline", times.send),
    ]
    steps: list[_Step] = []
    for name, lane, kind, seconds in order:
        if seconds > 0:
            steps.append(_Step(name, lane, kind, seconds, tuple(one.name for one in steps[-1:])))
    return steps


def _run(steps: list[_Step]) -> list[Piece]:
    """Each lane does its steps in order, each as soon as those it waits for are done."""
    done: dict[str, float] = {}
    free = {COMPUTE: 0.0, COMMUNICATION: 0.0}
    found = []
    for step in steps:
        begin = max(free[step.lane], *(done.get(name, 0.0) for name in step.after), 0.0)
        end = begin + step.seconds
        done[step.name] = free[step.lane] = end
        found.append(Piece(name=step.name, lane=step.lane, kind=step.kind, begin=begin, end=end))
    return found
