# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What a diagnosis found on each rank, and what it says to whoever reads the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_NAMES_SHOWN = 4
_RANKS_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Output:
    """A module whose output was not finite.

    Attributes:
        order: 0-based layer; -1 is the embedding, the number of layers what follows them.
        sequence: how many were noted on this rank before it.
        name: of layer and module.
    """

    order: int
    sequence: int
    name: str

    @property
    def place(self) -> tuple[int, int]:
        """Sorts by place in the forward pass."""
        return self.order, self.sequence


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What one rank found.

    Attributes:
        host: its machine.
        weights: canonical matrices with weights that are not finite.
        output: the first module, in the order of the forward pass, with such an output.
        losses: micro-batches with such a loss, 0-based.
        gradients: canonical matrices whose own gradient, before any reduction, is not finite.
    """

    host: str
    weights: tuple[str, ...]
    output: Output | None
    losses: tuple[int, ...]
    gradients: tuple[str, ...]


def explain(found: Sequence[Findings]) -> str:
    """What was found, the most likely cause and what to do, as lines of text."""
    lines = [
        *_matrices("weights that are not finite", [one.weights for one in found], found),
        *_outputs(found),
        *[
            f"  loss: rank {rank} on {one.host}, micro-batches {_some(list(map(str, one.losses)))}"
            for rank, one in enumerate(found)
            if one.losses
        ],
        *_matrices("gradients that are not finite", [one.gradients for one in found], found),
    ]
    if not lines:
        lines = ["  repeated, the same micro-batches give finite losses and gradients"]
    return "\n".join([*lines, f"  what to do: {_advice(found)}"])


def _outputs(found: Sequence[Findings]) -> list[str]:
    """The first output of the forward pass over all ranks that is not finite."""
    places = [(one.output.place, rank) for rank, one in enumerate(found) if one.output is not None]
    if not places:
        return []
    (order, _), _ = min(places)
    ranks = [rank for (place, _), rank in places if place == order]
    first = found[ranks[0]]
    assert first.output is not None
    return [f"  first in the forward pass: {first.output.name}; {_hosts(ranks, found)}"]


def _matrices(what: str, names: Sequence[tuple[str, ...]], found: Sequence[Findings]) -> list[str]:
    """Ranks with the same matrices in one line."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for rank, keys in enumerate(names):
        if keys:
            groups.setdefault(keys, []).append(rank)
    lines = [
        f"  {what}: {_hosts(ranks, found)}: {_some(keys)}"
        for keys, ranks in list(groups.items())[:_RANKS_SHOWN]
    ]
    if len(groups) > _RANKS_SHOWN:
        lines.append(f"  {what}: and on {len(groups) - _RANKS_SHOWN} more groups of ranks")
    return lines


def _advice(found: Sequence[Findings]) -> str:
    """The most likely cause."""
    if any(one.weights for one in found):
        return (
            "the weights themselves are broken: move away the checkpoints that hold them "
            "(the newest first) and start again from an older one"
        )
    wrong = [rank for rank, one in enumerate(found) if one.gradients or one.losses or one.output]
    if not wrong:
        return (
            "it does not repeat, which points to hardware: start the same command again, without "
            "the host that shows errors in its logs"
        )
    if len(wrong) == 1 and len(found) > 1:
        rank = wrong[0]
        return (
            f"rank {rank} alone makes them: its host {found[rank].host}, or its part of the text; "
            "start again without that host, and if it comes again look at the data"
        )
    return (
        "many ranks make them: a learning rate that is too high, a batch of odd text, or a change "
        "of the code; go back to a checkpoint from before the loss rose (move newer ones away), "
        "with a lower schedule.lr, or let run.loss_spike_factor pass the text by"
    )


def _hosts(ranks: Sequence[int], found: Sequence[Findings]) -> str:
    hosts = sorted({found[rank].host for rank in ranks})
    noun = "rank" if len(ranks) == 1 else "ranks"
    return f"{noun} {_some([str(rank) for rank in ranks])} on {_some(hosts)}"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
